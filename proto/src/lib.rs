//! Generated messages and services of Tidegate's wire protocols.
//!
//! The `.proto` files under `proto/tidegate` are the source; by hand is written only that a secret
//! does not show.
//! Conversions to the types of the cores live in the shells.

/// The services that people and tools call.
pub mod control {
    /// Version 1 of `tidegate.control`.
    #[allow(
        missing_docs,
        clippy::all,
        reason = "generated; the comments stand in the .proto files"
    )]
    pub mod v1 {
        tonic::include_proto!("tidegate.control.v1");
        include!(concat!(env!("OUT_DIR"), "/tidegate.control.v1.serde.rs"));
    }
}

/// The link between agents and coordinators.
pub mod agent {
    /// Version 1 of `tidegate.agent`.
    #[allow(
        missing_docs,
        clippy::all,
        reason = "generated; the comments stand in the .proto files"
    )]
    pub mod v1 {
        tonic::include_proto!("tidegate.agent.v1");
    }
}

/// How agents, people and coordinators get their first certificate.
pub mod enroll {
    /// Version 1 of `tidegate.enroll`.
    #[allow(
        missing_docs,
        clippy::all,
        reason = "generated; the comments stand in the .proto files"
    )]
    pub mod v1 {
        tonic::include_proto!("tidegate.enroll.v1");
    }
}

/// The link between coordinators.
pub mod peer {
    /// Version 1 of `tidegate.peer`.
    #[allow(
        missing_docs,
        clippy::all,
        reason = "generated; the comments stand in the .proto files"
    )]
    pub mod v1 {
        tonic::include_proto!("tidegate.peer.v1");
    }
}

/// The encoded descriptors of every file, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

impl std::fmt::Debug for control::v1::SecretValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretValue(withheld)")
    }
}

impl std::fmt::Debug for agent::v1::SecretValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretValue({}, withheld)", self.version)
    }
}
