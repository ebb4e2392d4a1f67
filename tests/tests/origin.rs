//! The origin gives what no member has, and what a member has only in part.

use std::fs;
use std::path::Path;

use velo_object::{ObjectId, Tree};
use velo_tests::content::{assert_same, many_files, random_file};
use velo_tests::{Cluster, Node, Settings};

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Settings of nodes that know one folder as their origin.
fn with_origin(folder: &Path) -> Settings {
    let extra = format!("[origin]\nurl = \"file://{}\"\n", folder.display());
    Settings { extra, ..Settings::default() }
}

/// A directory with packs of small files and some large ones.
fn source(cluster: &Cluster) -> std::path::PathBuf {
    let source = cluster.path("source");
    many_files(&source, 1, 300, 3000);
    random_file(&source.join("large"), 2, 5 << 20);
    random_file(&source.join("loose"), 3, 200_000);
    fs::write(source.join("empty"), b"").expect("a file");
    source
}

fn put(node: &Node, source: &Path) -> ObjectId {
    let id = node.json(&["put", text(source), "--origin"])["id"].as_str().expect("an id").to_owned();
    id.parse().expect("an id")
}

#[test]
fn another_cluster_gets_a_tree_from_the_origin() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = with_origin(folder.path());
    let putting = Cluster::start_with(1, &settings);
    let source = source(&putting);
    let id = put(&putting.nodes[0], &source).to_string();

    // Nobody here has anything of it, and one of them does not know the origin.
    let mut getting = Cluster::start_with(2, &settings);
    getting.join(&Settings::default());
    getting.wait_for_members();
    for (at, name) in [(0, "kept"), (2, "from the member that read it")] {
        let dest = getting.path(name);
        getting.nodes[at].ok(&["get", &id, text(&dest)]);
        assert_same(&source, &dest);
    }
    assert_eq!(getting.nodes[0].counter("jobs_failed_total"), 0);
}

#[test]
fn what_is_not_kept_comes_from_the_origin_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = with_origin(folder.path());
    let putting = Cluster::start_with(1, &settings);
    let source = source(&putting);
    let id = put(&putting.nodes[0], &source).to_string();

    let getting = Cluster::start_with(1, &settings);
    let dest = getting.path("passed through");
    getting.nodes[0].ok(&["get", "--no-keep", &id, text(&dest)]);
    assert_same(&source, &dest);
}

#[test]
fn the_origin_fills_what_a_member_lacks() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start_with(2, &with_origin(folder.path()));
    let source = source(&cluster);
    let id = put(&cluster.nodes[0], &source);
    let table = velo_tests::local::read(&mut cluster.nodes[0].socket(), id.blob);
    let tree = Tree::parse(table).expect("a tree");
    // The first node keeps the table and loses what it names.
    let parts: Vec<ObjectId> = tree
        .packs()
        .chain(tree.blobs())
        .map(|named| format!("blob:{}", named.blob.to_hex()).parse().expect("an id"))
        .collect();
    for part in parts {
        cluster.nodes[0].socket().remove(part).expect("it is only cache");
    }
    let dest = cluster.path("dest");
    cluster.nodes[1].ok(&["get", &id.to_string(), text(&dest)]);
    assert_same(&source, &dest);
}

#[test]
fn what_neither_members_nor_the_origin_have_is_not_waited_for_without_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = with_origin(folder.path());
    let putting = Cluster::start_with(1, &settings);
    let source = source(&putting);
    let id = put(&putting.nodes[0], &source).to_string();
    let content = fs::read(source.join("large")).expect("a file");
    let digits = velo_object::BlobId::of(&content).to_hex();
    fs::remove_file(folder.path().join("velo-1").join(&digits[..2]).join(&digits)).expect("removed");

    let getting = Cluster::start_with(1, &settings);
    let dest = getting.path("dest");
    let output = getting.nodes[0].run(&["get", "--wait", "4s", &id, text(&dest)]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let log = getting.nodes[0].log();
    assert_eq!(log.matches(&format!("the origin has no blob:{digits}")).count(), 1, "{log}");
}
