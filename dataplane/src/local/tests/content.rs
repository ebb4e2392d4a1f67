//! What one node is asked for: puts, reads, pins, the book, and requests that make no sense.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use velo_object::{BlobId, ObjectId, ObjectKind, PIECE_BYTES};
use velo_socket::{Client, Connection, ErrorCode, Request, Response, memory_file};

use super::{SOON, Velod, code, file, noise};
use crate::session::tests::authority::Authority;
use crate::session::tests::eventually;

fn blob(id: BlobId) -> ObjectId {
    ObjectId { kind: ObjectKind::Blob, blob: id }
}

fn named(ingested: &velo_socket::Ingested) -> velo_object::Named {
    velo_object::Named { blob: ingested.blob, size_bytes: ingested.size_bytes }
}

fn put_one(client: &mut Client, content: &[u8]) -> BlobId {
    let put = client.put_begin().expect("begun");
    let ingested = client.put_files(put, &[file(content).as_fd()]).expect("ingested");
    assert_eq!(ingested[0].blob, BlobId::of(content));
    client.put_packs(put).expect("packs");
    client.put_commit(put, blob(ingested[0].blob), None).expect("committed");
    ingested[0].blob
}

fn read_opened(client: &mut Client, id: BlobId) -> Vec<u8> {
    let (fd, offset_bytes, size_bytes, complete) = client.open(id, false).expect("opened");
    assert!(complete);
    let file = File::from(fd);
    let mut content = vec![0; size_bytes as usize];
    file.read_exact_at(&mut content, offset_bytes).expect("read");
    assert!((&file).write_all(b"x").is_err(), "read-only");
    content
}

#[test]
fn what_is_put_is_there_and_pinned_until_it_is_removed() {
    let velod = Velod::new(&Authority::new());
    let mut client = velod.client();
    assert_eq!((client.node(), client.pid()), (velod.node, std::process::id()));
    for content in [noise(3 * PIECE_BYTES as usize + 5, 1), noise(200_000, 2)] {
        let id = put_one(&mut client, &content);
        assert_eq!(read_opened(&mut client, id), content);
        let stat = client.stat_one(id).expect("a stat").expect("there");
        assert!(stat.complete && stat.pinned);
        assert_eq!(stat.size_bytes, Some(content.len() as u64));
        assert!(client.pins().expect("pins").contains(&blob(id)));
        let prefix = id.to_hex()[..12].parse().expect("a prefix");
        assert_eq!(client.resolve(prefix).expect("resolved"), [id]);
        client.wait(id, 0..content.len() as u64, SOON).expect("all there");
    }
    let listed = client.list(None, 10).expect("a list");
    assert_eq!(listed.len(), 2);
    assert_eq!(client.list(Some(listed[0].0), 10).expect("the rest"), listed[1..]);
    for (id, _) in listed {
        let (blobs, bytes, _) = client.remove(blob(id)).expect("removed");
        assert!(blobs >= 1 && bytes > 0);
        assert_eq!(code(client.open(id, true)), ErrorCode::NotFound);
        assert_eq!(client.stat_one(id).expect("a stat"), None);
    }
    let status = client.status().expect("a status");
    assert!(status.counters.iter().any(|(name, value)| name == "local_requests_total" && *value > 10));
}

#[test]
fn a_tree_is_put_as_one_unit() {
    let velod = Velod::new(&Authority::new());
    let mut client = velod.client();
    let contents = [noise(10, 1), noise(2 * PIECE_BYTES as usize, 2), noise(5000, 3)];
    let files: Vec<File> = contents.iter().map(|content| file(content)).collect();
    let put = client.put_begin().expect("begun");
    let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let ingested = client.put_files(put, &fds).expect("ingested");
    let link = client.put_small(put, vec![b"a".to_vec()]).expect("ingested");
    let packs = client.put_packs(put).expect("packs");
    let mut builder = velo_object::TreeBuilder::new();
    let kind = velo_object::EntryKind::File;
    for (name, ingested) in ["a", "b", "c"].into_iter().zip(&ingested) {
        builder.content(name.as_bytes(), kind, named(ingested), 0).expect("an entry");
    }
    let link_kind = velo_object::EntryKind::Symlink;
    builder.content(b"d", link_kind, named(&link[0]), 0).expect("an entry");
    let packs: Vec<_> = packs.iter().map(named).collect();
    let tree = builder.finish(&packs).expect("a tree").into_bytes();
    let root = ObjectId { kind: ObjectKind::Tree, blob: BlobId::of(&tree) };
    let table = memory_file("tree", &tree).expect("a memory file");
    // Before the commit nothing of it is pinned; after it all is.
    assert!(client.pins().expect("pins").is_empty());
    client.put_commit(put, root, Some(table.as_fd())).expect("committed");
    assert_eq!(client.pins().expect("pins"), [root]);
    for content in &contents {
        assert_eq!(&read_opened(&mut client, BlobId::of(content)), content);
    }
    assert_eq!(read_opened(&mut client, root.blob), tree);
    let mut reader = velod.client().reader(root.blob, true).expect("a reader");
    let mut again = Vec::new();
    reader.read_to_end(&mut again).expect("read");
    assert_eq!(again, tree);
}

#[test]
fn a_put_that_is_not_committed_goes_with_its_connection() {
    let velod = Velod::new(&Authority::new());
    let content = noise(2 * PIECE_BYTES as usize, 9);
    let mut client = velod.client();
    let put = client.put_begin().expect("begun");
    client.put_files(put, &[file(&content).as_fd()]).expect("ingested");
    let mut other = velod.client();
    assert_eq!(code(other.put_commit(put, blob(BlobId::of(&content)), None)), ErrorCode::NotFound);
    drop(client);
    eventually("its space is given back", || velod.store.usage().expect("a usage").staged_bytes == 0);
    assert!(other.stat_one(BlobId::of(&content)).expect("a stat").is_none_or(|stat| !stat.pinned));
    assert!(other.pins().expect("pins").is_empty());
}

#[test]
fn ingests_only_what_it_should_be() {
    let velod = Velod::new(&Authority::new());
    let mut client = velod.client();
    let content = noise(300_000, 4);
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    let fed = content.clone();
    let feeding = std::thread::spawn(move || File::from(writer).write_all(&fed));
    let ingested = client.ingest(BlobId::of(&content), reader.as_fd()).expect("from a pipe");
    feeding.join().expect("no panic").expect("fed");
    assert_eq!(ingested.size_bytes, content.len() as u64);
    assert!(!client.stat_one(ingested.blob).expect("a stat").expect("there").pinned, "only cache");
    let other = BlobId::of(b"something else");
    assert_eq!(code(client.ingest(other, file(b"this").as_fd())), ErrorCode::Mismatch);
    assert_eq!(client.stat_one(other).expect("a stat"), None);
}

#[test]
fn the_book_compares_and_sets() {
    let velod = Velod::new(&Authority::new());
    let mut client = velod.client();
    assert_eq!(client.book_get("refs", b"a").expect("read"), None);
    client.book_put("refs", b"a", Some(b"1".to_vec()), Some(None)).expect("created");
    let conflict = client.book_put("refs", b"a", Some(b"2".to_vec()), Some(None));
    assert_eq!(code(conflict), ErrorCode::Conflict);
    client.book_put("refs", b"a", Some(b"2".to_vec()), Some(Some(b"1".to_vec()))).expect("changed");
    client.book_put("refs", b"b", Some(b"3".to_vec()), None).expect("written");
    let all = client.book_scan("refs", None, 10).expect("a scan");
    assert_eq!(all, [(b"a".to_vec(), b"2".to_vec()), (b"b".to_vec(), b"3".to_vec())]);
    assert_eq!(client.book_scan("refs", Some(b"a".to_vec()), 10).expect("a scan"), all[1..]);
    assert!(client.book_scan("policies", None, 10).expect("a scan").is_empty());
    client.book_put("refs", b"a", None, None).expect("deleted");
    assert_eq!(client.book_get("refs", b"a").expect("read"), None);
}

#[test]
fn requests_that_make_no_sense_are_told_so_and_cost_only_themselves() {
    let velod = Velod::new(&Authority::new());
    let mut client = velod.client();
    let (nothing, one) = (BlobId::of(b"nothing"), file(b"1"));
    assert_eq!(code(client.call(&Request::Jobs, &[one.as_fd()])), ErrorCode::Invalid);
    assert_eq!(
        code(client.call(&Request::PutFiles { put: 1, count: 2 }, &[one.as_fd()])),
        ErrorCode::Invalid
    );
    assert_eq!(code(client.call(&Request::Ingest { expected: nothing }, &[])), ErrorCode::Invalid);
    assert_eq!(code(client.put_packs(77)), ErrorCode::NotFound);
    assert_eq!(code(client.open(nothing, true)), ErrorCode::NotFound);
    assert_eq!(code(client.wait(nothing, 0..1, Duration::ZERO)), ErrorCode::TimedOut);
    assert_eq!(code(client.cancel(12)), ErrorCode::NotFound);
    assert_eq!(code(client.add_sources(12, vec![velod.node])), ErrorCode::NotFound);
    assert_eq!(code(client.pin(blob(nothing), false)), ErrorCode::NotFound);
    assert_eq!(code(client.pull(velo_socket::Pull::default())), ErrorCode::Invalid);
    let answer = Request::Answer { call: 1, reply: Ok(Vec::new()) };
    assert_eq!(code(client.call(&answer, &[])), ErrorCode::Invalid);
    let again = Request::Hello { version: 1, client: String::new() };
    assert_eq!(code(client.call(&again, &[])), ErrorCode::Invalid);
    let mut stream = client.watch(12, Duration::from_millis(10)).expect("sent");
    assert_eq!(code(stream.next().expect("an answer")), ErrorCode::NotFound);
    assert!(stream.next().is_none());
    let folder = File::open("/").expect("a folder");
    let put = client.put_begin().expect("begun");
    assert_eq!(code(client.put_files(put, &[folder.as_fd()])), ErrorCode::Invalid);
    let commit = client.put_commit(put, blob(nothing), Some(folder.as_fd()));
    assert_eq!(code(commit), ErrorCode::Invalid);
    assert_eq!(code(client.put_commit(put, blob(nothing), None)), ErrorCode::NotFound);
    let puts: Vec<_> = std::iter::repeat_with(|| client.put_begin()).take(17).collect();
    assert!(puts[..16].iter().all(Result::is_ok));
    assert_eq!(puts[16].as_ref().expect_err("too many").code(), Some(ErrorCode::Limit));
    client.status().expect("the connection is still good");

    // Garbage ends only its own connection.
    let mut garbage = UnixStream::connect(&velod.socket).expect("a connection");
    garbage.write_all(&[9, 0, 0, 0, 255, 255, 255, 255, 255, 1, 1, 1, 1]).expect("sent");
    let mut rest = Vec::new();
    garbage.read_to_end(&mut rest).expect("closed");
    let mut hasty = Connection::new(UnixStream::connect(&velod.socket).expect("a connection"));
    hasty.send_request(&Request::Jobs, &[]).expect("sent");
    let (answer, _) = hasty.receive_response(Some(SOON)).expect("an answer");
    assert!(matches!(answer, Response::Error(error) if error.message.contains("hello")));
    client.status().expect("others go on");
}

#[test]
fn verify_streams_and_names_what_is_damaged() {
    let velod = Velod::new(&Authority::new());
    let mut client = velod.client();
    let good = put_one(&mut client, &noise(2 * PIECE_BYTES as usize, 5));
    let last = |client: &mut Client| match client.verify().expect("begun").last() {
        Some(Ok(Response::Verifying { blobs, damaged, last: true, .. })) => (blobs, damaged),
        other => panic!("{other:?}"),
    };
    assert_eq!(last(&mut client), (1, Vec::new()));
    client.stat_one(good).expect("the stream has ended");
}

#[test]
fn the_sockets_mode_and_what_stands_in_its_place() {
    let velod = Velod::new(&Authority::new());
    let mode = std::fs::metadata(&velod.socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("file");
    std::fs::write(&path, "precious").expect("written");
    assert!(matches!(super::super::listen(&path), Err(super::super::LocalError::InTheWay(_))));
    assert_eq!(std::fs::read(&path).expect("kept"), b"precious");
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("stale")).expect("a socket"));
    super::super::listen(&dir.path().join("stale")).expect("a stale socket is replaced");
}
