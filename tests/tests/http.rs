//! Content over HTTP between real nodes: a file out of a tree comes alone, and who goes away leaves nothing behind.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use velo_object::BlobId;
use velo_socket::JobState;
use velo_tests::content::{assert_same, many_files, random_file};
use velo_tests::{Cluster, Node, wait_until};

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Sends a request; the answer is read by the caller.
fn ask(node: &Node, path: &str) -> TcpStream {
    let http = node.http().expect("it answers HTTP");
    let mut tcp = TcpStream::connect(http).expect("it accepts");
    let token = node.token();
    write!(
        tcp,
        "GET {path} HTTP/1.1\r\nHost: {http}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    )
    .expect("it reads");
    tcp
}

/// The status line and the body of an answer with a length.
fn get(node: &Node, path: &str) -> (String, Vec<u8>) {
    let mut answer = Vec::new();
    ask(node, path).read_to_end(&mut answer).expect("an answer");
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    (head.lines().next().unwrap_or_default().to_owned(), answer.split_off(end + 4))
}

#[test]
fn files_of_a_tree_come_alone() {
    let cluster = Cluster::start(2);
    let source = cluster.path("source");
    many_files(&source, 1, 300, 3000);
    random_file(&source.join("one"), 2, 3 << 20);
    random_file(&source.join("two"), 3, 5 << 20);
    let id = cluster.nodes[0].json(&["put", text(&source)])["id"].as_str().expect("an id").to_owned();
    let id = id.strip_prefix("tree:").expect("a tree");
    for path in ["two", "001/file-299"] {
        let (status, body) = get(&cluster.nodes[1], &format!("/v1/trees/{id}/{path}"));
        assert_eq!(status, "HTTP/1.1 200 OK", "{path}");
        assert!(body == std::fs::read(source.join(path)).expect("a file"), "{path} differs");
    }
    let other = BlobId::of(&std::fs::read(source.join("one")).expect("a file"));
    let here = cluster.nodes[1].socket().stat_one(other).expect("velod answers");
    assert_eq!(here, None, "nobody asked for the other file");
    // What came alone fits into the whole.
    let dest = cluster.path("dest");
    cluster.nodes[1].ok(&["get", &format!("tree:{id}"), text(&dest)]);
    assert_same(&source, &dest);
}

#[test]
fn a_reader_that_goes_away_leaves_no_job_behind() {
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    let jobs = || node.socket().jobs().expect("velod answers");
    let reader = ask(node, &format!("/v1/blobs/{}", BlobId::of(b"nowhere").to_hex()));
    wait_until("its job begins", || !jobs().is_empty());
    drop(reader);
    wait_until("its job ends", || jobs().iter().all(|job| job.state == JobState::Cancelled));
}
