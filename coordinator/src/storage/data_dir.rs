//! A coordinator's data folder: who the node is, and the lock that keeps a second process out.
//!
//! `identity.json` is written once, by `init` or `join`, and binds the folder to one cluster and
//! one node id for ever. A node whose folder is lost must join anew and gets a new id.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The folder of the snapshots in a data folder.
pub const SNAPSHOTS: &str = "snapshots";
const IDENTITY: &str = "identity.json";

/// A coordinator as its peers know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// The node id, from 1, never used again.
    pub node_id: u64,
    /// The name in its certificate: `spiffe://<trust domain>/coordinator/<name>`.
    pub name: String,
    /// `host:port` of its peer listener.
    pub address: String,
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The cluster's ULID as text.
    pub cluster_id: String,
    /// The trust domain of all certificates.
    pub trust_domain: String,
    /// This node's id.
    pub node_id: u64,
    /// This node's name.
    pub name: String,
    /// The members when the node joined, itself included: how it finds and knows its peers until
    /// it has the state.
    pub peers: Vec<Peer>,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Another process has the folder.
    #[error("{0} is in use by another coordinator process: stop it first")]
    InUse(PathBuf),
    /// There is no identity.
    #[error("{0} holds no coordinator: run `tidegate-coordinator init` or `join` first")]
    Empty(PathBuf),
    /// There is one already.
    #[error(
        "{path} already holds node {node_id} of cluster {cluster_id}: use another folder, or start it with `run`"
    )]
    Taken {
        /// The folder.
        path: PathBuf,
        /// The node in it.
        node_id: u64,
        /// Its cluster.
        cluster_id: String,
    },
    /// The identity cannot be read.
    #[error("{path} cannot be read: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        reason: String,
    },
}

/// A locked data folder. The lock goes with the value.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// Who lives in a folder that another process may be using.
///
/// # Errors
/// [`DataDirError::Empty`] or [`DataDirError::Malformed`].
pub fn read_identity(folder: &Path) -> Result<Identity, DataDirError> {
    let path = folder.join(IDENTITY);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(DataDirError::Empty(folder.to_owned()));
        }
        Err(source) => {
            return Err(DataDirError::Io {
                action: "read",
                path,
                source,
            });
        }
    };
    serde_json::from_slice(&text).map_err(|e| DataDirError::Malformed {
        path,
        reason: e.to_string(),
    })
}

impl DataDir {
    /// Opens and locks `path`, creating the folder when it is missing.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] or [`DataDirError::Io`].
    pub fn open(path: &Path) -> Result<DataDir, DataDirError> {
        let io = |action: &'static str| {
            let path = path.to_owned();
            move |source| DataDirError::Io {
                action,
                path,
                source,
            }
        };
        std::fs::create_dir_all(path).map_err(io("create"))?;
        let lock = File::create(path.join("lock")).map_err(io("lock"))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(DataDir {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(DataDirError::InUse(path.to_owned())),
            Err(error) => Err(io("lock")(error.into())),
        }
    }

    /// The folder of the log's segments.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The folder of the snapshots.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.path.join(SNAPSHOTS)
    }

    /// The file of the history.
    #[must_use]
    pub fn history(&self) -> PathBuf {
        self.path.join("history.redb")
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who lives here.
    ///
    /// # Errors
    /// [`DataDirError::Empty`] or [`DataDirError::Malformed`].
    pub fn identity(&self) -> Result<Identity, DataDirError> {
        read_identity(&self.path)
    }

    /// Whether nobody lives here yet.
    ///
    /// # Errors
    /// [`DataDirError::Taken`] when somebody does.
    pub fn require_empty(&self) -> Result<(), DataDirError> {
        match self.identity() {
            Ok(found) => Err(DataDirError::Taken {
                path: self.path.clone(),
                node_id: found.node_id,
                cluster_id: found.cluster_id,
            }),
            Err(DataDirError::Empty(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes who lives here; the last step of `init` and `join`, so a folder with an identity is
    /// complete.
    ///
    /// # Errors
    /// [`DataDirError::Taken`] or [`DataDirError::Io`].
    pub fn claim(&self, identity: &Identity) -> Result<(), DataDirError> {
        self.require_empty()?;
        let path = self.path.join(IDENTITY);
        let temporary = self.path.join("identity.json.tmp");
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(identity)?)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| DataDirError::Io {
            action: "write",
            path: path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            cluster_id: "01CLUSTER".to_owned(),
            trust_domain: "test".to_owned(),
            node_id: 1,
            name: "a".to_owned(),
            peers: Vec::new(),
        }
    }

    #[test]
    fn a_folder_is_claimed_once_and_used_by_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(folder.path()).unwrap();
        assert!(matches!(dir.identity(), Err(DataDirError::Empty(_))));
        dir.claim(&identity()).unwrap();
        assert_eq!(dir.identity().unwrap(), identity());
        assert!(matches!(
            dir.claim(&identity()),
            Err(DataDirError::Taken { node_id: 1, .. })
        ));
        assert!(matches!(
            DataDir::open(folder.path()),
            Err(DataDirError::InUse(_))
        ));
        drop(dir);
        assert!(DataDir::open(folder.path()).is_ok());
    }
}
