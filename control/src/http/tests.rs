//! The interface as a caller sees it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::de::DeserializeOwned;
use tower::ServiceExt as _;
use velo_object::{BlobId, EntryKind, Named, ObjectId, ObjectKind, PackBuilder, PackStep, TreeBuilder};
use velo_socket::JobState;

use super::*;
use crate::client::*;
use crate::node::lock;
use crate::tests::{Node, cluster, until};

struct Answer {
    status: StatusCode,
    headers: axum::http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn code(&self) -> (u16, String) {
        (self.status.as_u16(), self.json::<ErrorBody>().error.code)
    }

    fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }
}

struct Caller(Router);

impl Caller {
    fn new(node: &Node) -> Self {
        let any = ([127, 0, 0, 1], 7441).into();
        Self(router(Arc::clone(&node.control), "secret", Addresses { http: any, gossip: any }))
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header("host", "127.0.0.1:7441");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(Body::from(body.to_owned())).expect("a request");
        let response = self.0.clone().oneshot(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 64 << 20).await.expect("a body").to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[("authorization", "Bearer secret")], "").await
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.send(method, path, &[("authorization", "Bearer secret")], body).await
    }
}

#[tokio::test]
async fn a_token_is_needed_for_all_but_health() {
    let (nodes, _net) = cluster(1, None).await;
    let caller = Caller::new(&nodes[0]);
    for path in ["/v1/status", "/v1/peers", "/v1/refs", "/metrics", "/v1/blobs/x", "/nothing"] {
        assert_eq!(caller.send("GET", path, &[], "").await.code(), (401, "denied".to_owned()), "{path}");
    }
    assert_eq!(caller.send("GET", "/healthz", &[], "").await.status, 200);
    assert_eq!(caller.send("GET", "/readyz", &[], "").await.status, 200);
    assert_eq!(caller.get("/nothing").await.code(), (404, "not_found".to_owned()));
    let large = format!("{{\"id\":\"{}\"}}", "x".repeat(MAX_BODY_BYTES));
    assert_eq!(caller.ask("PUT", "/v1/refs/a", &large).await.status, 413);
    assert_eq!(caller.ask("PUT", "/v1/refs/a", "{\"id\":").await.code().1, "invalid");
    assert_eq!(caller.ask("POST", "/v1/pull", "{\"what\":[],\"more\":1}").await.code().1, "invalid");
    let metrics = caller.get("/metrics").await.text();
    assert!(
        metrics.contains("velo_blobs_total 0") && metrics.contains("velo_control_http_refused_total 6"),
        "{metrics}"
    );
    let status: StatusView = caller.get("/v1/status").await.json();
    assert!(status.velod_connected && status.authority && status.members == 1, "{status:?}");
}

#[tokio::test]
async fn names_and_peers() {
    let (nodes, _net) = cluster(2, None).await;
    let (caller, other) = (Caller::new(&nodes[0]), Caller::new(&nodes[1]));
    let id = ObjectId { kind: ObjectKind::Tree, blob: BlobId::of(b"x") }.to_string();
    let put = format!("{{\"id\":\"{id}\",\"expect\":0}}");
    let made: RefView = caller.ask("PUT", "/v1/refs/models/llama-3:prod", &put).await.json();
    assert_eq!((made.version, made.writer_name.as_str(), made.history.len()), (1, "n0", 1));
    assert_eq!(
        caller.ask("PUT", "/v1/refs/models/llama-3:prod", &put).await.code(),
        (409, "conflict".to_owned())
    );
    assert_eq!(caller.ask("PUT", "/v1/refs/..", &put).await.status, 400);
    assert_eq!(
        caller.ask("PUT", "/v1/refs/a", "{\"id\":\"tree:12\"}").await.code(),
        (400, "invalid".to_owned())
    );
    let again: RefView =
        other.ask("PUT", "/v1/refs/models/llama-3:prod", &put.replace(":0}", ":1}")).await.json();
    assert_eq!((again.version, again.writer), (2, made.writer));
    let resolved: Resolved = other.get("/v1/resolve?what=models/llama-3:prod").await.json();
    assert_eq!((resolved.id, resolved.version), (id.clone(), Some(2)));
    assert_eq!(other.get("/v1/resolve?what=models/none").await.code(), (404, "not_found".to_owned()));
    let list: Vec<RefView> = caller.get("/v1/refs").await.json();
    assert_eq!((list.len(), list[0].history.len()), (1, 0));
    assert_eq!(caller.ask("DELETE", "/v1/refs/models/llama-3:prod?expect=1", "").await.status, 409);
    let gone: RefView = caller.ask("DELETE", "/v1/refs/models/llama-3:prod?expect=2", "").await.json();
    assert_eq!(gone.id, id);
    assert_eq!(caller.get("/v1/refs/models/llama-3:prod").await.status, 404);

    let peers: Vec<PeerView> = caller.get("/v1/peers").await.json();
    assert_eq!(peers.iter().filter(|peer| peer.this).count(), 1);
    let token: TokenReply = caller.ask("POST", "/v1/cluster/token", "{}").await.json();
    assert!(token.token.starts_with("velo1.") && token.uses == 1);
    assert_eq!(other.ask("POST", "/v1/cluster/token", "{}").await.code().1, "denied");
    assert_eq!(caller.ask("POST", "/v1/cluster/revoke", "{\"node\":\"nobody\"}").await.status, 404);
    let out: RevokeReply = caller.ask("POST", "/v1/cluster/revoke", "{\"node\":\"n1\"}").await.json();
    assert_eq!((out.node, out.name.as_str()), (nodes[1].id().to_hex(), "n1"));
    let peers: Vec<PeerView> = caller.get("/v1/peers").await.json();
    assert_eq!(peers.iter().filter(|peer| peer.state == "revoked").count(), 1);
}

#[tokio::test]
async fn blobs_and_files_of_trees_with_ranges() {
    let (nodes, _net) = cluster(1, None).await;
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
    let (blob, tree) = {
        let mut state = lock(&nodes[0].velod.state);
        let blob = state.store(&content);
        let (mut packs, small, mut pack) = (PackBuilder::new(), BlobId::of(b"small"), Vec::new());
        let mut write = |step: PackStep<'_>| -> Result<(), ()> {
            if let PackStep::Append(bytes) = step {
                pack.extend_from_slice(bytes);
            }
            Ok(())
        };
        packs.push(BlobId::of(b"tiny"), b"tiny", &mut write).expect("room");
        packs.push(small, b"small", &mut write).expect("room");
        packs.finish(&mut write).expect("closed");
        // The pack alone is in the store, as it is when it came from elsewhere and is not indexed.
        let packs = [Named { blob: state.store(&pack), size_bytes: pack.len() as u64 }];
        let mut builder = TreeBuilder::new();
        let mut file = |path: &[u8], blob, size_bytes| {
            builder.content(path, EntryKind::File, Named { blob, size_bytes }, 0).expect("an entry");
        };
        file(b"a-tiny", BlobId::of(b"tiny"), 4);
        file(b"b-small", small, 5);
        file(b"dir/large\xff", blob, content.len() as u64);
        let table = builder.finish(&packs).expect("a tree").into_bytes();
        (blob, state.store(&table))
    };
    let caller = Caller::new(&nodes[0]);
    let path = format!("/v1/blobs/{}", blob.to_hex());
    let whole = caller.get(&path).await;
    assert_eq!((whole.status.as_u16(), whole.body == content), (200, true));
    let etag = format!("\"{}\"", blob.to_hex());
    assert_eq!((whole.header(header::ETAG), whole.header(header::ACCEPT_RANGES)), (etag.as_str(), "bytes"));
    let with = |name, value| [("authorization", "Bearer secret"), (name, value)];
    let part = caller.send("GET", &path, &with("range", "bytes=1048570-1048585"), "").await;
    assert_eq!((part.status.as_u16(), &part.body[..]), (206, &content[1_048_570..=1_048_585]));
    assert_eq!(part.header(header::CONTENT_RANGE), "bytes 1048570-1048585/3000000");
    let tail = caller.send("GET", &path, &with("range", "bytes=-5"), "").await;
    assert_eq!((tail.status.as_u16(), &tail.body[..]), (206, &content[2_999_995..]));
    let beyond = caller.send("GET", &path, &with("range", "bytes=3000000-"), "").await;
    assert_eq!((beyond.status.as_u16(), beyond.header(header::CONTENT_RANGE)), (416, "bytes */3000000"));
    let same = caller.send("GET", &path, &with("if-none-match", &etag), "").await;
    assert_eq!((same.status.as_u16(), same.body.len()), (304, 0));
    let mut stale = with("range", "bytes=0-1").to_vec();
    stale.push(("if-range", "\"other\""));
    assert_eq!(caller.send("GET", &path, &stale, "").await.status, 200);
    let head = caller.send("HEAD", &path, &with("range", "bytes=0-1"), "").await;
    assert_eq!((head.status.as_u16(), head.header(header::CONTENT_LENGTH), head.body.len()), (206, "2", 0));

    let listed: TreeView = caller.get(&format!("/v1/trees/{}", tree.to_hex())).await.json();
    assert_eq!(listed.entries[2].path, "dir/large\\xff");
    let small = caller.get(&format!("/v1/trees/{}/b-small", tree.to_hex())).await;
    assert_eq!((small.status.as_u16(), small.text().as_str()), (200, "small"));
    let small = format!("/v1/trees/{}/b-small", tree.to_hex());
    let small = caller.send("GET", &small, &with("range", "bytes=1-2"), "").await;
    assert_eq!((small.status.as_u16(), small.text().as_str()), (206, "ma"));
    let file = format!("/v1/trees/{}/dir/large%5Cxff", tree.to_hex());
    let file = caller.send("GET", &file, &with("range", "bytes=5-9"), "").await;
    assert_eq!(&file.body[..], &content[5..10], "{}", file.text());
    let none = caller.get(&format!("/v1/trees/{}/dir/none", tree.to_hex())).await;
    assert_eq!(none.code(), (404, "not_found".to_owned()));
    assert_eq!(caller.get(&format!("/v1/trees/{}", blob.to_hex())).await.code().1, "invalid", "no tree");
    assert_eq!(caller.get("/v1/blobs/nonsense").await.code().1, "not_found", "no such name");
    assert_eq!(caller.get("/v1/blobs/blob:nonsense").await.code().1, "invalid");
}

#[tokio::test]
async fn pulls_and_their_events() {
    let (nodes, _net) = cluster(2, None).await;
    let blob = lock(&nodes[1].velod.state).store(b"weights");
    let caller = Caller::new(&nodes[0]);
    let body = format!("{{\"what\":[\"{}\"]}}", &blob.to_hex()[..12]);
    let job: PullReply = caller.ask("POST", "/v1/pull", &body).await.json();
    assert_eq!(job.ids, [blob.to_string()]);
    let events = caller.get(&format!("/v1/jobs/{}/events", job.job)).await;
    assert_eq!(events.header(header::CONTENT_TYPE), "text/event-stream");
    let text = events.text();
    assert_eq!(text.matches("event: progress\n").count(), 2, "{text}");
    assert!(
        text.contains("\"state\":\"waiting\"")
            && text.trim_end().ends_with('}')
            && text.contains("\"complete\"")
    );
    let holders: Vec<Holders> = caller.get(&format!("/v1/where?id={blob}")).await.json();
    assert_eq!((holders[0].holders.len(), holders[0].silent.len()), (2, 0));
    let sources: SourcesReply =
        caller.ask("POST", "/v1/sources", &format!("{{\"job\":{}}}", job.job)).await.json();
    assert_eq!(sources.sources, [nodes[1].id().to_hex()]);
    let cancelled: JobView = caller.ask("DELETE", &format!("/v1/jobs/{}", job.job), "").await.json();
    assert_eq!(cancelled.state, "cancelled");
    assert_eq!(caller.get("/v1/jobs/1").await.code(), (404, "not_found".to_owned()));
    assert_eq!(caller.get("/v1/jobs/x").await.code(), (400, "invalid".to_owned()));
    assert_eq!(caller.ask("POST", "/v1/pull", "{\"what\":[]}").await.status, 400);
    assert_eq!(caller.ask("POST", "/v1/origin/put", &format!("{{\"id\":\"{blob}\"}}")).await.status, 409);
}

#[tokio::test]
async fn a_reader_that_goes_leaves_no_job_behind() {
    let (nodes, _net) = cluster(2, None).await;
    let caller = Caller::new(&nodes[0]);
    let path = format!("/v1/blobs/{}", BlobId::of(b"nowhere").to_hex());
    let state = || lock(&nodes[0].velod.state).jobs.values().map(|job| job.state.clone()).collect::<Vec<_>>();
    let reading = caller.get(&path);
    let gone = tokio::time::timeout(Duration::from_millis(300), reading).await;
    assert!(gone.is_err(), "it waits");
    until("its job is cancelled", || state() == [JobState::Cancelled]).await;
    // Also one that goes before the job has begun.
    let gone = tokio::time::timeout(Duration::from_micros(1), caller.get(&path)).await;
    assert!(gone.is_err());
    tokio::time::sleep(Duration::from_millis(300)).await;
    until("no job waits", || state().iter().all(|state| *state == JobState::Cancelled)).await;
    let answer = caller.get(&path).await;
    assert_eq!(answer.code(), (404, "not_found".to_owned()), "at last it gives up");
    until("no job waits", || state().iter().all(|state| *state == JobState::Cancelled)).await;
}

#[tokio::test]
async fn a_file_of_a_tree_is_pulled_alone_and_first() {
    let (nodes, _net) = cluster(1, None).await;
    let contents = [vec![1u8; 200_000], vec![2u8; 300_000]];
    let mut builder = TreeBuilder::new();
    for (content, path) in contents.iter().zip([b"a", b"b"]) {
        let named = Named { blob: BlobId::of(content), size_bytes: content.len() as u64 };
        builder.content(path, EntryKind::File, named, 0).expect("an entry");
    }
    let table = builder.finish(&[]).expect("a tree").into_bytes();
    let tree = lock(&nodes[0].velod.state).store(&table);
    let caller = Caller::new(&nodes[0]);
    let path = format!("/v1/trees/{}/b", tree.to_hex());
    let comes = async {
        until("it is pulled", || !lock(&nodes[0].velod.state).jobs.is_empty()).await;
        let mut state = lock(&nodes[0].velod.state);
        let (priority, sizes) = state.pulled.clone();
        assert!(priority > 0, "before what nobody waits for");
        assert_eq!(sizes, [Some(300_000)]);
        state.store(&contents[1]);
    };
    let (answer, ()) = tokio::join!(caller.get(&path), comes);
    assert_eq!((answer.status.as_u16(), answer.body == contents[1]), (200, true));
    let jobs = lock(&nodes[0].velod.state).jobs.clone();
    let roots: Vec<BlobId> = jobs.values().flat_map(|job| &job.roots).map(|root| root.blob).collect();
    assert_eq!(roots, [BlobId::of(&contents[1])]);
}

#[tokio::test]
async fn only_so_many_wait_for_content_that_arrives() {
    let (nodes, _net) = cluster(1, None).await;
    let caller = Caller::new(&nodes[0]);
    let path = format!("/v1/blobs/{}", BlobId::of(b"nowhere").to_hex());
    let readers: FuturesUnordered<_> = (0..MAX_READERS + 3).map(|_| caller.get(&path)).collect();
    let first: Vec<Answer> = readers.take(3).collect().await;
    assert!(first.iter().all(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS), "the others wait");
}

#[tokio::test]
async fn an_origin_that_fails_hides_no_members() {
    let folder = tempfile::tempdir().expect("a folder");
    let (nodes, _net) = cluster(1, Some(folder.path())).await;
    let blob = lock(&nodes[0].velod.state).store(b"here");
    // A name in a circle cannot be looked at.
    let way = folder.path().join("velo-1");
    std::os::unix::fs::symlink(&way, &way).expect("a link to itself");
    assert!(nodes[0].control.origin.as_ref().expect("an origin").has(&blob).await.is_err());
    let answer = Caller::new(&nodes[0]).get(&format!("/v1/where?id={blob}")).await;
    let found: Vec<Holders> = answer.json();
    assert_eq!((found[0].holders.len(), found[0].origin), (1, None));
}
