//! The bodies of the HTTP API, shared by velo-control and its callers (the CLI among them).
//!
//! Ids travel as text (`blob:<64 hex>`, `tree:<64 hex>`), nodes as 64 hexadecimal digits, times as milliseconds since
//! the Unix epoch. Every request but the health checks carries `Authorization: Bearer <run/token>`.
//!
//! | method and path | body → answer |
//! |---|---|
//! | `GET /v1/status` | → [`StatusView`] |
//! | `GET /v1/peers` | → `[`[`PeerView`]`]` |
//! | `GET /v1/refs` | → `[`[`RefView`]`]`, without history |
//! | `GET /v1/refs/NAME` | → [`RefView`], with history |
//! | `PUT /v1/refs/NAME` | [`RefPut`] → [`RefView`] |
//! | `DELETE /v1/refs/NAME[?expect=VERSION]` | → [`RefView`] (as it was) |
//! | `GET /v1/resolve?what=ID\|PREFIX\|REF` | → [`Resolved`] |
//! | `GET /v1/where?id=ID[&id=ID…]` | → `[`[`Holders`]`]` |
//! | `POST /v1/pull` | [`PullRequest`] → [`PullReply`] |
//! | `POST /v1/sources` | [`SourcesRequest`] → [`SourcesReply`]: control goes on feeding a job that the caller began on velod |
//! | `GET /v1/jobs`, `GET /v1/jobs/ID` | → `[`[`JobView`]`]`, [`JobView`] |
//! | `DELETE /v1/jobs/ID` | → [`JobView`] |
//! | `GET /v1/jobs/ID/events[?every_ms=N]` | server-sent events `progress`, each a [`JobView`]; the last one's state has ended |
//! | `POST /v1/origin/put` | [`OriginPut`] → [`OriginPutReply`] |
//! | `POST /v1/cluster/token` | [`TokenRequest`] → [`TokenReply`] (on the authority's node) |
//! | `POST /v1/cluster/revoke` | [`RevokeRequest`] → [`RevokeReply`] (on the authority's node) |
//! | `GET /v1/blobs/ID`, `GET /v1/trees/ID`, `GET /v1/trees/ID/PATH` | bytes, with `Range`; a tree alone gives its [`TreeView`] |
//!
//! An answer that is not 2xx carries [`ErrorBody`].

use serde::{Deserialize, Serialize};

/// What control wrote into `run/control.json` when it became ready.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ControlJson {
    /// Its process.
    pub pid: u32,
    /// Where its HTTP listens.
    pub http: std::net::SocketAddr,
    /// Where its gossip listens.
    pub gossip: std::net::SocketAddr,
}

/// The body of an answer that is not 2xx.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorView,
}

/// What went wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorView {
    /// For programs: `not_found`, `ambiguous`, `invalid`, `conflict`, `denied`, `unreachable`, `timed_out`, `limit`,
    /// `full`, `mismatch`, `in_use`, `unavailable`, `cancelled`, `io`.
    pub code: String,
    /// For people: names the culprit and says what to do.
    pub message: String,
}

/// To `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusView {
    /// This node.
    pub node: String,
    /// Its name, for people.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Its cluster.
    pub cluster: String,
    /// Whether the cluster's authority is on this node.
    pub authority: bool,
    /// Version of Velo.
    pub version: String,
    /// How long control has been up.
    pub up_ms: u64,
    /// When this node's certificate ends.
    pub certificate_expires_ms: u64,
    /// Members that are up, this one included.
    pub members: u64,
    /// Names that are set.
    pub refs: u64,
    /// Where HTTP listens.
    pub http: String,
    /// Where gossip listens.
    pub gossip: String,
    /// Whether an origin is configured here.
    #[serde(default)]
    pub origin: bool,
    /// Whether velod answers.
    pub velod_connected: bool,
    /// velod's counters, as the socket gives them.
    pub counters: Vec<(String, u64)>,
    /// velod's gauges.
    pub gauges: Vec<(String, u64)>,
    /// velod's sessions.
    pub sessions: Vec<SessionView>,
    /// velod's workers, one line each.
    pub workers: Vec<String>,
    /// What the operator should know, in words.
    pub notes: Vec<String>,
}

/// A session of velod with a peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionView {
    /// The peer.
    pub node: String,
    /// Its address.
    pub address: String,
    /// How long it has been up.
    pub up_ms: u64,
    /// What carries what is read from it: `tcp`, `udp`, `xdp` or `dpdk`.
    pub fabric: String,
    /// The round trip on a path to it in microseconds, where packets carry it.
    pub rtt_us: Option<u64>,
    /// How many of a million segments were lost there.
    pub loss_ppm: Option<u64>,
    /// Content bytes received from it.
    pub received_bytes: u64,
    /// Content bytes sent to it.
    pub sent_bytes: u64,
    /// Pieces from it that did not verify.
    pub bad_pieces: u64,
}

/// A member of the cluster as this node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerView {
    /// Its key.
    pub node: String,
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Where its velod is reached.
    pub addresses: Vec<String>,
    /// Where its gossip is reached.
    pub gossip: String,
    /// `alive`, `suspect`, `down`, `left` or `revoked`.
    pub state: String,
    /// Whether it is this node.
    pub this: bool,
    /// What its store can still take.
    pub free_bytes: u64,
    /// Fabrics that it speaks.
    pub fabrics: Vec<String>,
    /// What carries what is read from it, where there is a session with it.
    pub fabric: Option<String>,
    /// The round trip on a path to it in microseconds, where packets carry it.
    pub rtt_us: Option<u64>,
    /// How many of a million segments were lost there.
    pub loss_ppm: Option<u64>,
    /// Its version of Velo.
    pub version: String,
    /// When its record was signed.
    pub updated_ms: u64,
}

/// A name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefView {
    /// The name.
    pub name: String,
    /// What it means now.
    pub id: String,
    /// Rises by one at every change.
    pub version: u64,
    /// The node that writes it.
    pub writer: String,
    /// That node's name, if known.
    pub writer_name: String,
    /// When this version was written.
    pub updated_ms: u64,
    /// What it meant before, newest first (at most 10, the present one among them).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<RefPast>,
    /// Another creation of the same name that lost against this one, if there was one: the id it meant and its writer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_to_this: Option<RefLost>,
}

/// A value that a name has had.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefPast {
    /// What it meant.
    pub id: String,
    /// In which version.
    pub version: u64,
    /// When it was written.
    pub updated_ms: u64,
}

/// A creation that lost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefLost {
    /// What it meant.
    pub id: String,
    /// Who wrote it.
    pub writer: String,
    /// When it was created.
    pub created_ms: u64,
}

/// To `PUT /v1/refs/NAME`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefPut {
    /// What it is to mean: a whole id with its kind.
    pub id: String,
    /// The version that must stand there now, 0 for none; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<u64>,
}

/// To `GET /v1/resolve`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resolved {
    /// The whole id, with its kind.
    pub id: String,
    /// The name, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// That name's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// Who holds an id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Holders {
    /// The id that was asked for.
    pub id: String,
    /// The members that have all or part of it.
    pub holders: Vec<Holder>,
    /// Members that did not answer in time.
    pub silent: Vec<String>,
    /// Whether the origin has it; absent where no origin is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<bool>,
}

/// A member that has all or part of something.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Holder {
    /// The member.
    pub node: String,
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Whether it has all of it.
    pub complete: bool,
    /// Whether a job there is getting it now.
    pub pulling: bool,
    /// Pieces it has; of a tree, those of its table.
    pub pieces: u64,
    /// The blob's size, if it knows it; of a tree, that of its table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Of a tree: the packs and large files that it names and that are complete there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobs_complete: Option<u64>,
    /// Of a tree: the packs and large files that it names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobs_total: Option<u64>,
}

/// To `POST /v1/pull`. A job that waits is cancelled once nobody has asked about it (its state, its events, `/v1/sources`) for an hour.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// Ids, prefixes or names.
    pub what: Vec<String>,
    /// Only the tables of trees.
    #[serde(default)]
    pub tables_only: bool,
    /// Higher goes first.
    #[serde(default)]
    pub priority: u8,
}

/// What began.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PullReply {
    /// The job on velod.
    pub job: u64,
    /// What it gets, in the order asked.
    pub ids: Vec<String>,
}

/// To `POST /v1/sources`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourcesRequest {
    /// A job that the caller began on velod.
    pub job: u64,
}

/// The members that were added so far; control goes on looking until the job has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourcesReply {
    /// Nodes.
    pub sources: Vec<String>,
}

/// Where a job stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobView {
    /// Which.
    pub job: u64,
    /// What it gets.
    pub roots: Vec<String>,
    /// `running`, `waiting`, `complete`, `cancelled` or `failed`.
    pub state: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorView>,
    /// Bytes in all, as far as is known.
    pub total_bytes: u64,
    /// Bytes that are here and verified.
    pub done_bytes: u64,
    /// Bytes that this job received.
    pub received_bytes: u64,
    /// Pieces that came and did not verify.
    pub bad_pieces: u64,
    /// Verified pieces that came twice.
    pub duplicate_pieces: u64,
    /// Since it began.
    pub elapsed_ms: u64,
    /// Bytes from each source.
    pub sources: Vec<JobSource>,
    /// Some of the blobs that are not complete.
    pub missing: Vec<String>,
}

/// What came from one source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobSource {
    /// The member.
    pub node: String,
    /// Its name, if known.
    pub name: String,
    /// Content bytes from it.
    pub bytes: u64,
}

/// To `POST /v1/origin/put`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OriginPut {
    /// An id (or a name) that is complete on this node.
    pub id: String,
}

/// What the origin has now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OriginPutReply {
    /// What was stored.
    pub id: String,
    /// Blobs written.
    pub written: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Blobs that the origin had already.
    pub present: u64,
}

/// To `POST /v1/cluster/token`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// How long it is good for.
    #[serde(default = "TokenRequest::default_expires_s")]
    pub expires_s: u64,
    /// How many nodes may join with it.
    #[serde(default = "TokenRequest::default_uses")]
    pub uses: u32,
}

impl TokenRequest {
    const fn default_expires_s() -> u64 {
        3600
    }
    const fn default_uses() -> u32 {
        1
    }
}

/// A token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenReply {
    /// The text to give to `velo up --join HOST:PORT --token`.
    pub token: String,
    /// The cluster.
    pub cluster: String,
    /// When it ends.
    pub expires_ms: u64,
    /// How many nodes may join with it.
    pub uses: u32,
    /// Where this node can be reached for `--join`.
    pub addresses: Vec<String>,
}

/// To `POST /v1/cluster/revoke`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// A node's id, a prefix of it (8 digits or more), or its name where only one has it.
    pub node: String,
}

/// What was revoked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RevokeReply {
    /// The node.
    pub node: String,
    /// Its name, if known.
    pub name: String,
    /// The serial number of the list that says so.
    pub serial: u64,
    /// Members that have confirmed the list.
    pub told: Vec<String>,
    /// Members that could not be told yet.
    pub silent: Vec<String>,
}

/// To `GET /v1/trees/ID`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TreeView {
    /// The tree.
    pub id: String,
    /// What stands in it, in order.
    pub entries: Vec<TreeEntryView>,
}

/// One entry of a tree.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TreeEntryView {
    /// The path; bytes that are not UTF-8 stand as `\xHH`, and a backslash as `\\`.
    pub path: String,
    /// `file`, `executable`, `symlink` or `directory`.
    pub kind: String,
    /// Bytes.
    pub size_bytes: u64,
    /// The content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}
