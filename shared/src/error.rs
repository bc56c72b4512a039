//! The one table of stable error codes: reason → code → gRPC status → hint.
//!
//! Every refusal that a person can meet stands here and has a page under `docs/errors`. A code is
//! never used again for something else.

use serde::{Deserialize, Serialize};

/// Kind of a refusal on the wire; the words are gRPC's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The input itself is wrong.
    InvalidArgument,
    /// No such object.
    NotFound,
    /// It is there already.
    AlreadyExists,
    /// The state of things forbids it.
    FailedPrecondition,
    /// Somebody else was first; read again.
    Aborted,
    /// No valid identity.
    Unauthenticated,
    /// The identity may not.
    PermissionDenied,
    /// Try again later.
    Unavailable,
    /// A limit is reached.
    ResourceExhausted,
    /// A bug of ours.
    Internal,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $wire:literal, $status:ident, $hint:literal;)*) => {
        /// A stable reason of refusal.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[$doc])* #[serde(rename = $wire)] $name,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// UPPER_SNAKE, as in `google.rpc.ErrorInfo.reason`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $wire),* }
            }

            /// `TG-####`.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => concat!("TG-", $number)),* }
            }

            /// Kind on the wire.
            pub const fn status(self) -> Status {
                match self { $(Self::$name => Status::$status),* }
            }

            /// The next step, in one line.
            pub const fn hint(self) -> &'static str {
                match self { $(Self::$name => $hint),* }
            }
        }
    };
}

reasons! {
    /// A field of the input is wrong.
    InvalidField = "1001", "INVALID_FIELD", InvalidArgument, "correct the named field and send it again";
    /// A file cannot be read as what it should be.
    MalformedFile = "1002", "MALFORMED_FILE", InvalidArgument, "correct the named line and try again";
    /// A required input is missing or a combination is wrong.
    InvalidRequest = "1003", "INVALID_REQUEST", InvalidArgument, "see --help of the command";
    /// A digest does not fit its bytes.
    DigestMismatch = "1004", "DIGEST_MISMATCH", InvalidArgument, "upload the asset again, or correct the sha256";
    /// A feature that this version does not have.
    NotSupported = "1005", "NOT_SUPPORTED", InvalidArgument, "leave it out, or upgrade the cluster";
    /// An archive has entries that could reach outside its tree, or cannot be read.
    UnsafeArchive = "1006", "UNSAFE_ARCHIVE", InvalidArgument, "correct the named entry and make a new release";
    /// No such object.
    NotFound = "1101", "NOT_FOUND", NotFound, "list what is there with `tidegate <kind> list`";
    /// The name is taken.
    AlreadyExists = "1102", "ALREADY_EXISTS", AlreadyExists, "choose another name, or change the object with `tidegate apply`";
    /// Another object still refers to it.
    InUse = "1103", "IN_USE", FailedPrecondition, "delete what refers to it first";
    /// The expected revision is not the present one.
    Stale = "1104", "STALE", Aborted, "read the object again and repeat the change";
    /// A field that cannot be changed.
    Immutable = "1105", "IMMUTABLE", FailedPrecondition, "make a new object";
    /// The request id is older than the 24 h for which outcomes are remembered.
    TooOld = "1106", "TOO_OLD", InvalidArgument, "send the request with a new request id";
    /// The request id is more than 1 h ahead of the cluster's time.
    FromTheFuture = "1107", "FROM_THE_FUTURE", InvalidArgument, "set this machine's clock";
    /// The same request id came with another request.
    RequestIdReused = "1108", "REQUEST_ID_REUSED", InvalidArgument, "use a new request id for each request";
    /// A secret parameter has no value, or one that does not fit its target.
    SecretValueNeeded = "1150", "SECRET_VALUE_NEEDED", FailedPrecondition, "give it: value_from in the manifest, or `tidegate parameter update NAME --secret`";
    /// Another deployment of the scope is under way.
    Conflict = "1201", "CONFLICT", FailedPrecondition, "wait for it, cancel it, or deploy with --on-conflict queue|supersede";
    /// The status of the deployment forbids the verb.
    WrongStatus = "1202", "WRONG_STATUS", FailedPrecondition, "see its status with `tidegate deployment get`";
    /// A first deployment has no version before it.
    NothingToReturnTo = "1203", "NOTHING_TO_RETURN_TO", FailedPrecondition, "cancel it, or deploy a good release";
    /// The release is not `ready`.
    ReleaseNotReady = "1204", "RELEASE_NOT_READY", FailedPrecondition, "wait until its assets are uploaded, or choose another release";
    /// The release was rejected.
    ReleaseRejected = "1205", "RELEASE_REJECTED", FailedPrecondition, "choose another release";
    /// The release is not among those kept on the hosts.
    NotKept = "1206", "NOT_KEPT", FailedPrecondition, "deploy it in the ordinary way with `tidegate deploy`";
    /// The strategy does not offer the verb.
    NotOffered = "1207", "NOT_OFFERED", FailedPrecondition, "see the strategy with `tidegate deployment get -o yaml`";
    /// The scope's status forbids it.
    ScopeStatus = "1208", "SCOPE_STATUS", FailedPrecondition, "see `tidegate scope get`";
    /// The release has no asset that the scope could take.
    NoMatchingAsset = "1209", "NO_MATCHING_ASSET", FailedPrecondition, "name the asset in the scope, or add it to a new release";
    /// The deployment does not wait for an approval.
    NoApprovalPending = "1210", "NO_APPROVAL_PENDING", FailedPrecondition, "list what waits with `tidegate approval list`";
    /// The same person decided already.
    AlreadyDecided = "1211", "ALREADY_DECIDED", FailedPrecondition, "another person has to decide";
    /// The deployment ended so long ago that it is history: it can be looked at alone.
    Archived = "1212", "ARCHIVED", FailedPrecondition, "deploy its release again with `tidegate deploy`";
    /// The assets of the release were removed from the store after long disuse.
    ReleaseCollected = "1213", "RELEASE_COLLECTED", FailedPrecondition, "upload them again with the same `tidegate release create`, then deploy";
    /// A policy's guardrail does not hold for the deployment.
    Guardrail = "1214", "GUARDRAIL", FailedPrecondition, "choose another strategy, or change it with --set";
    /// Other applications need what a person wants to go back from, or the other way round.
    StillNeeded = "1215", "STILL_NEEDED", FailedPrecondition, "roll back what depends on it first, or say --force with a --reason";
    /// No certificate, or none of this cluster.
    Unauthenticated = "1301", "UNAUTHENTICATED", Unauthenticated, "log in with `tidegate login --token …`";
    /// The identity may not do this.
    PermissionDenied = "1302", "PERMISSION_DENIED", PermissionDenied, "ask an administrator";
    /// The token is not one of this cluster.
    TokenUnknown = "1303", "TOKEN_UNKNOWN", Unauthenticated, "ask for a new token: `tidegate token create`";
    /// The token ran out.
    TokenExpired = "1304", "TOKEN_EXPIRED", Unauthenticated, "ask for a new token: `tidegate token create`";
    /// The token has no use left.
    TokenUsedUp = "1305", "TOKEN_USED_UP", Unauthenticated, "ask for a new token: `tidegate token create`";
    /// The text is no token at all.
    TokenMalformed = "1306", "TOKEN_MALFORMED", InvalidArgument, "copy the whole token, it starts with tg1_";
    /// The server is not the one that the token was made by.
    WrongServer = "1307", "WRONG_SERVER", Unauthenticated, "check the address; the token belongs to another cluster";
    /// The certificate signing request is not acceptable.
    BadCsr = "1308", "BAD_CSR", InvalidArgument, "join again with this version's program";
    /// The identity was removed from the cluster.
    Revoked = "1309", "REVOKED", PermissionDenied, "join again with a new token";
    /// An administrator took the agent out of the cluster.
    AgentRemoved = "1310", "AGENT_REMOVED", PermissionDenied, "join again with a new token if that was a mistake";
    /// Nobody leads at the moment.
    NoLeader = "1401", "NO_LEADER", Unavailable, "a majority of coordinators must be up; see `tidegate cluster status`";
    /// Too many commands wait.
    QueueFull = "1402", "QUEUE_FULL", ResourceExhausted, "try again in a moment";
    /// The connection to the leader broke after the command was sent.
    OutcomeUnknown = "1403", "OUTCOME_UNKNOWN", Unavailable, "repeat it with the same request id: it is done at most once";
    /// The coordinator is stopping.
    ShuttingDown = "1404", "SHUTTING_DOWN", Unavailable, "try another coordinator";
    /// The coordinator's clock is too far off.
    ClockSkew = "1405", "CLOCK_SKEW", Unavailable, "set its clock; see `tidegate cluster status`";
    /// The agent has no session at the moment.
    AgentNotConnected = "1406", "AGENT_NOT_CONNECTED", Unavailable, "see `tidegate agent get`";
    /// A blob that nobody here holds.
    BlobMissing = "1407", "BLOB_MISSING", NotFound, "upload it again with `tidegate release create`";
    /// A message is larger than its limit.
    TooLarge = "1408", "TOO_LARGE", ResourceExhausted, "send less at once";
    /// No coordinator can be reached.
    Unreachable = "1409", "UNREACHABLE", Unavailable, "check the addresses in the context: `tidegate context list`";
    /// The disk of a coordinator has no room for an asset.
    StoreFull = "1410", "STORE_FULL", ResourceExhausted, "free space on the coordinator's disk, or let blobs.keep be shorter; then upload again";
    /// A value of the configuration is wrong.
    Config = "1501", "CONFIG", InvalidArgument, "correct the configuration file or the environment variable";
    /// An address is taken.
    AddressInUse = "1502", "ADDRESS_IN_USE", FailedPrecondition, "stop the other program, or choose another address";
    /// The data folder cannot be used.
    DataFolder = "1503", "DATA_FOLDER", FailedPrecondition, "see the message; never delete the folder of a running member";
    /// A file of the context, a certificate or a key cannot be used.
    Credentials = "1504", "CREDENTIALS", InvalidArgument, "log in again with `tidegate login`";
    /// A program of the package is missing.
    ProgramMissing = "1505", "PROGRAM_MISSING", FailedPrecondition, "build or install all programs side by side";
    /// The services could not be installed on a host, or taken off it.
    HostSetup = "1510", "HOST_SETUP", FailedPrecondition, "see --help of the command; it can be repeated after the cure";
    /// The proxy of this host does not answer, or cannot be replaced.
    ProxyUnavailable = "1541", "PROXY_UNAVAILABLE", Unavailable, "start the agent, which starts its proxy; see proxy.log in the proxy's folder";
    /// The group has ended.
    GroupEnded = "1550", "GROUP_ENDED", FailedPrecondition, "act on a deployment of it, or make a new group";
    /// Not every member of the group is in the status that the verb needs.
    GroupNotRunning = "1551", "GROUP_NOT_RUNNING", FailedPrecondition, "roll the group back, or cancel the deployments one by one";
    /// The group finalizes, which is not turned back.
    GroupFinalizing = "1552", "GROUP_FINALIZING", FailedPrecondition, "wait until the group is FINALIZED, then roll it back";
    /// No member of the group takes the verb now.
    GroupNothingToDo = "1553", "GROUP_NOTHING_TO_DO", FailedPrecondition, "see what each member does with `tidegate group get`";
    /// The group is being taken back.
    GroupTakenBack = "1554", "GROUP_TAKEN_BACK", FailedPrecondition, "make a new group";
    /// What was said instead of scopes finds none.
    NothingSelected = "1570", "NOTHING_SELECTED", FailedPrecondition, "see what there is with `tidegate scope list -o wide`, or name scopes with --scope";
    /// The person lacks the role that this needs, there.
    RoleNeeded = "1580", "ROLE_NEEDED", PermissionDenied, "ask an administrator for the role; `tidegate whoami` shows yours";
    /// The cluster would be left without an administrator.
    LastAdmin = "1581", "LAST_ADMIN", FailedPrecondition, "give somebody else the role admin first: `tidegate user update NAME --role admin`";
    /// An exported audit log is not as the cluster wrote it.
    AuditBroken = "1582", "AUDIT_BROKEN", FailedPrecondition, "compare it with a fresh `tidegate audit export`, and keep both files";
    /// A file is no whole export of an audit log.
    AuditFile = "1583", "AUDIT_FILE", InvalidArgument, "export it again with `tidegate audit export --to FILE`";
    /// Several objects of a set were refused.
    RefusedInPart = "1600", "REFUSED_IN_PART", FailedPrecondition, "correct what is named and apply again: what is done stays unchanged";
    /// The command was interrupted before everything was done.
    Interrupted = "1601", "INTERRUPTED", Unavailable, "run it again: what is done stays unchanged";
    /// Something would be deleted and nobody agreed.
    NotConfirmed = "1602", "NOT_CONFIRMED", FailedPrecondition, "look at it with --dry-run, then say --yes";
    /// Files are in the way of those that would be written.
    FilesInTheWay = "1603", "FILES_IN_THE_WAY", AlreadyExists, "choose another folder, or say --force to write over them";
    /// `capacity: proportional` where instances cannot follow the traffic.
    CapacityNotOffered = "1620", "CAPACITY_NOT_OFFERED", FailedPrecondition, "leave capacity out, or say capacity: full; with --set for one deployment";
    /// A check that the scope's instances cannot be asked.
    CheckNotOffered = "1621", "CHECK_NOT_OFFERED", FailedPrecondition, "measure with a command, a url or prometheus instead, or deploy with another strategy";
    /// A bug of ours.
    Internal = "1900", "INTERNAL", Internal, "please report it with the log lines around it";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_and_reasons_are_unique() {
        let codes: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        let words: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
