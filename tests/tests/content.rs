//! What can be put comes back the same: every kind of name, size and entry; and what is dangerous is refused.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use velo_tests::content::{assert_same, many_files, random_file, same_file};
use velo_tests::{Cluster, Node};

velo_tests::over_each_fabric!(
    every_kind_of_entry_arrives_the_same,
    no_keep_keeps_what_is_pinned_and_nothing_else,
    get_writes_only_what_differs,
    sparse_stays_sparse,
    names_and_prefixes_resolve,
    crafted_trees_are_refused,
    a_link_in_the_way_is_never_followed,
);

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn put(node: &Node, path: &Path) -> String {
    node.json(&["put", text(path)])["id"].as_str().expect("an id").to_owned()
}

fn every_kind_of_entry_arrives_the_same(fabric: &'static str) {
    let cluster = Cluster::over(fabric, 2);
    let source = cluster.path("source");
    fs::create_dir_all(source.join("empty directory")).expect("a directory");
    fs::write(source.join("zero"), b"").expect("a file");
    random_file(&source.join("one-piece"), 1, 1 << 20);
    random_file(&source.join("one-piece-and-a-byte"), 2, (1 << 20) + 1);
    random_file(&source.join("five-pieces"), 3, 5 << 20);
    random_file(&source.join("largest-packed"), 4, 128 << 10);
    random_file(&source.join("smallest-loose"), 5, (128 << 10) + 1);
    fs::write(source.join("a name with spaces"), b"1").expect("a file");
    fs::write(source.join("a\nnew\nline"), b"2").expect("a file");
    fs::write(source.join(OsStr::from_bytes(b"not\xff\xfeutf-8")), b"3").expect("a file");
    fs::write(source.join("run.sh"), b"#!/bin/sh\n").expect("a file");
    fs::set_permissions(source.join("run.sh"), fs::Permissions::from_mode(0o4755)).expect("a mode");
    let deep = (0..60).fold(source.clone(), |path, level| path.join(format!("level-{level}")));
    fs::create_dir_all(&deep).expect("directories");
    fs::write(deep.join("bottom"), b"deep").expect("a file");
    symlink("/etc/passwd", source.join("outside")).expect("a link");
    symlink("../../..", source.join("up")).expect("a link");
    symlink("nowhere", source.join("dangling")).expect("a link");
    fs::hard_link(source.join("five-pieces"), source.join("second-name")).expect("a hard link");
    many_files(&source.join("many"), 6, 700, 4096);

    let id = put(&cluster.nodes[0], &source);
    assert!(id.starts_with("tree:"), "{id}");
    assert_eq!(put(&cluster.nodes[0], &source), id, "equal directories have equal ids");

    for (name, flags) in
        [("passed-through", &["--no-keep"][..]), ("kept", &[][..]), ("linked", &["--link"][..])]
    {
        let dest = cluster.path(name);
        let mut words = vec!["get", &id, text(&dest)];
        words.extend_from_slice(flags);
        cluster.nodes[1].ok(&words);
        assert_same(&source, &dest);
        let mode = fs::metadata(dest.join("run.sh")).expect("a file").permissions().mode();
        assert_eq!(mode & 0o7000, 0, "no setuid");
        if name == "passed-through" {
            let content = fs::read(source.join("five-pieces")).expect("a file");
            let kept =
                cluster.nodes[1].socket().stat_one(velo_object::BlobId::of(&content)).expect("velod answers");
            assert_eq!(kept, None, "--no-keep kept a blob in the store");
        }
    }
    cluster.assert_carried_by(fabric);
}

fn no_keep_keeps_what_is_pinned_and_nothing_else(fabric: &'static str) {
    let cluster = Cluster::over(fabric, 2);
    let source = cluster.path("source");
    many_files(&source, 1, 50, 10_000);
    random_file(&source.join("large"), 2, 3 << 20);
    let id = put(&cluster.nodes[0], &source);
    // As somebody might while it is under way: the pin alone, and nothing of the content.
    let root = id.parse().expect("an id");
    cluster.nodes[1].socket().pin(root, true).expect("velod answers");
    cluster.nodes[1].ok(&["get", &id, text(&cluster.path("dest")), "--no-keep"]);
    assert_same(&source, &cluster.path("dest"));
    let pins = cluster.nodes[1].socket().pins().expect("velod answers");
    assert!(pins.contains(&root), "{pins:?}");

    let small = cluster.path("small");
    fs::write(&small, b"a few bytes").expect("a file");
    let blob = put(&cluster.nodes[0], &small);
    let dest = cluster.path("small-dest");
    cluster.nodes[1].ok(&["get", &blob, text(&dest), "--no-keep"]);
    assert_eq!(fs::read(&dest).expect("a file"), b"a few bytes");
    let kept =
        cluster.nodes[1].socket().stat_one(velo_object::BlobId::of(b"a few bytes")).expect("velod answers");
    assert_eq!(kept, None, "--no-keep kept a blob in the store");
}

fn get_writes_only_what_differs(fabric: &'static str) {
    let cluster = Cluster::over(fabric, 2);
    let source = cluster.path("source");
    many_files(&source, 1, 50, 10_000);
    random_file(&source.join("large"), 2, 3 << 20);
    let first = put(&cluster.nodes[0], &source);
    let dest = cluster.path("dest");
    cluster.nodes[1].ok(&["get", &first, text(&dest)]);
    let before = fs::metadata(dest.join("large")).expect("the file");
    fs::write(source.join("000/file-7"), b"changed").expect("a change");
    fs::remove_file(dest.join("000/file-8")).expect("a file that is lost");
    let second = put(&cluster.nodes[0], &source);
    assert_ne!(first, second);
    cluster.nodes[1].ok(&["get", &second, text(&dest)]);
    assert_same(&source, &dest);
    let after = fs::metadata(dest.join("large")).expect("the file");
    assert_eq!(
        (before.ino(), before.ctime_nsec()),
        (after.ino(), after.ctime_nsec()),
        "an equal file is left alone"
    );
}

fn sparse_stays_sparse(fabric: &'static str) {
    let cluster = Cluster::over(fabric, 2);
    let path = cluster.path("sparse");
    // The store keeps room for all of it: that it has holes is seen only when they arrive.
    let disk = rustix::fs::statvfs(path.parent().expect("a directory")).expect("the disk");
    if disk.f_bavail * disk.f_frsize < 12 << 30 {
        return velo_tests::skip("a sparse file of 10 GiB: the disk has less than 12 GiB free");
    }
    let file = fs::File::create(&path).expect("a file");
    file.set_len(10 << 30).expect("a hole");
    let data = cluster.path("data");
    random_file(&data, 9, 1 << 20);
    let bytes = fs::read(&data).expect("the data");
    for at in 0..100u64 {
        file.write_all_at(&bytes, at * 101 * (1 << 20)).expect("data in the file");
    }
    let id = put(&cluster.nodes[0], &path);
    for (name, flags) in [("kept", &[][..]), ("passed-through", &["--no-keep"][..])] {
        let dest = cluster.path(name);
        let mut words = vec!["get", &id, text(&dest)];
        words.extend_from_slice(flags);
        cluster.nodes[1].ok(&words);
        let meta = fs::metadata(&dest).expect("the file");
        assert_eq!(meta.size(), 10 << 30);
        assert!(meta.blocks() * 512 < 200 << 20, "{} bytes on disk", meta.blocks() * 512);
        let copy = fs::File::open(&dest).expect("the file");
        let mut part = vec![1; 1 << 20];
        for at in 0..100u64 {
            copy.read_exact_at(&mut part, at * 101 * (1 << 20)).expect("data");
            assert!(part == bytes, "data {at}");
            copy.read_exact_at(&mut part, (at * 101 + 50) * (1 << 20)).expect("a hole");
            assert!(part.iter().all(|&byte| byte == 0), "hole {at}");
        }
    }
}

#[test]
fn special_files_are_refused_by_name() {
    let cluster = Cluster::start(1);
    let source = cluster.path("source");
    fs::create_dir(&source).expect("a directory");
    rustix::fs::mknodat(rustix::fs::CWD, source.join("a-pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .expect("a FIFO");
    let output = cluster.nodes[0].run(&["put", text(&source)]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("a-pipe"), "names the culprit: {said}");
}

fn names_and_prefixes_resolve(fabric: &'static str) {
    let cluster = Cluster::over(fabric, 2);
    let path = cluster.path("file");
    random_file(&path, 1, 300_000);
    let id = cluster.nodes[0].json(&["put", text(&path), "--name", "models/tiny:v1"])["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let dest = cluster.path("by-name");
    velo_tests::wait_until("the ref arrives on the other node", || {
        cluster.nodes[1].run(&["get", "models/tiny:v1", text(&dest)]).status.success()
    });
    assert!(same_file(&path, &dest));
    let prefix = &id["blob:".len()..][..8];
    let dest = cluster.path("by-prefix");
    cluster.nodes[1].ok(&["get", prefix, text(&dest)]);
    assert!(same_file(&path, &dest));
    let unknown = cluster.nodes[1].run(&["get", "0123456789abcdef", text(&cluster.path("none"))]);
    assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
    assert!(!cluster.path("none").exists());
}

fn crafted_trees_are_refused(fabric: &'static str) {
    use velo_socket::ErrorCode;
    let cluster = Cluster::over(fabric, 2);
    let source = cluster.path("source");
    fs::create_dir_all(source.join("aa")).expect("a directory");
    fs::write(source.join("aa/xy"), b"content").expect("a file");
    let id = put(&cluster.nodes[0], &source);
    let blob = id.parse::<velo_object::ObjectId>().expect("an id").blob;
    let mut socket = cluster.nodes[0].socket();
    let table = velo_tests::local::read(&mut socket, blob);
    for name in [&b"../xy"[..], b"/a/xy", b"aa/..", b"aa/./"] {
        let mut crafted = table.clone();
        let at = crafted.windows(5).position(|part| part == b"aa/xy").expect("the name stands in the table");
        crafted[at..at + 5].copy_from_slice(&name[..5]);
        let path = cluster.path("crafted");
        fs::write(&path, &crafted).expect("a file");
        // As a plain blob anything may be stored; as a tree nobody materialises it.
        let stored = put(&cluster.nodes[0], &path);
        let as_tree = stored.replace("blob:", "tree:");
        let dest = cluster.path("dest");
        let output = cluster.nodes[1].run(&["get", &as_tree, text(&dest)]);
        assert_eq!(output.status.code(), Some(5), "{:?}: {output:?}", OsStr::from_bytes(name));
        assert!(!dest.join("aa").exists() && !cluster.path("xy").exists(), "nothing was written");
        let refused =
            socket.pin(as_tree.parse().expect("an id"), true).expect_err("no pin on a crafted tree");
        assert!(matches!(refused.code(), Some(ErrorCode::Invalid | ErrorCode::Mismatch)), "{refused}");
    }
}

fn a_link_in_the_way_is_never_followed(fabric: &'static str) {
    let cluster = Cluster::over(fabric, 2);
    let source = cluster.path("source");
    fs::create_dir_all(source.join("sub")).expect("a directory");
    fs::write(source.join("sub/file"), b"content").expect("a file");
    let id = put(&cluster.nodes[0], &source);
    let (dest, outside) = (cluster.path("dest"), cluster.path("outside"));
    fs::create_dir_all(&dest).expect("a directory");
    fs::create_dir_all(&outside).expect("a directory");
    symlink(&outside, dest.join("sub")).expect("a link");
    let _ = cluster.nodes[1].run(&["get", &id, text(&dest)]);
    assert!(!outside.join("file").exists(), "a write went through a symbolic link");
}
