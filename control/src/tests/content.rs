//! Directory, pulls and the origin among several nodes.

use std::time::Duration;

use velo_object::{BlobId, EntryKind, Named, ObjectId, ObjectKind, TreeBuilder};
use velo_socket::{ErrorCode, JobState};

use super::{Node, cluster, cluster_where, until};
use crate::node::lock;
use crate::origin::OriginError;
use crate::velod::VelodError;

fn blob(content: &[u8]) -> ObjectId {
    ObjectId { kind: ObjectKind::Blob, blob: BlobId::of(content) }
}

fn sources(node: &Node, job: u64) -> Vec<velo_object::NodeId> {
    lock(&node.velod.state).sources.get(&job).into_iter().flatten().copied().collect()
}

#[tokio::test]
async fn holders_and_other_pullers_become_sources() {
    let (nodes, _net) = cluster(4, None).await;
    let root = blob(b"weights");
    lock(&nodes[0].velod.state).store(b"weights");
    let first = nodes[1].control.pull(vec![root], false, 0).await.expect("a job");
    until("the holder is found", || sources(&nodes[1], first) == [nodes[0].id()]).await;
    let second = nodes[2].control.pull(vec![root], false, 0).await.expect("a job");
    let both = |node: &Node, job, others: [usize; 2]| {
        let found = sources(node, job);
        found.len() == 2 && others.iter().all(|&other| found.contains(&nodes[other].id()))
    };
    until("the second knows the holder and the first", || both(&nodes[2], second, [0, 1])).await;
    until("the first knows the second", || both(&nodes[1], first, [0, 2])).await;

    let mut answers = nodes[3].control.ask_all(&[root.blob], false);
    let mut found = Vec::new();
    while let Some((node, holdings)) = answers.recv().await {
        found.extend(
            holdings.expect("an answer")[0].clone().map(|holding| (node, holding.complete, holding.pulling)),
        );
    }
    found.sort();
    let mut expected =
        vec![(nodes[0].id(), true, false), (nodes[1].id(), false, true), (nodes[2].id(), false, true)];
    expected.sort();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_holder_that_comes_later_is_found_and_silent_members_do_not_delay() {
    let (nodes, net) = cluster(3, None).await;
    net.cut(nodes[2].id(), true);
    let root = blob(b"late");
    let job = nodes[1].control.pull(vec![root], false, 0).await.expect("a job");
    assert!(sources(&nodes[1], job).is_empty());
    lock(&nodes[0].velod.state).store(b"late");
    until("it is found", || sources(&nodes[1], job) == [nodes[0].id()]).await;
    // A job that somebody else began on velod is fed as well.
    let direct = nodes[1].control.velod.pull(vec![root], vec![None], false, vec![], 0).await.expect("a job");
    assert_eq!(nodes[1].control.feed_job(direct).await.expect("fed"), [nodes[0].id()]);
    let none = nodes[1].control.feed_job(9999).await;
    assert!(matches!(none, Err(VelodError::Refused(error)) if error.code == ErrorCode::NotFound));
}

#[tokio::test]
async fn prefixes_are_resolved_over_all_members() {
    let (nodes, _net) = cluster(3, None).await;
    lock(&nodes[2].velod.state).store(b"far away");
    let tree = ObjectId { kind: ObjectKind::Tree, blob: BlobId::of(b"far away") };
    let digits = &tree.blob.to_hex()[..8];
    let resolve = |text: &str| {
        let (control, prefix) = (nodes[0].control.clone(), text.parse().expect("a prefix"));
        async move { control.resolve_prefix(&prefix).await.map_err(|error| error.to_string()) }
    };
    assert_eq!(resolve(digits).await, Ok(blob(b"far away")));
    lock(&nodes[2].velod.state).pins.insert(tree);
    assert_eq!(resolve(digits).await, Ok(tree), "its kind is known where it is pinned");
    assert_eq!(resolve(&tree.blob.to_hex()).await, Ok(tree));
    assert!(resolve("0123456789").await.is_err());
    let whole = BlobId::of(b"nowhere").to_hex();
    assert_eq!(resolve(&whole).await, Ok(blob(b"nowhere")), "a whole id is an id");
    // Two that begin alike.
    let mut twin = *tree.blob.as_bytes();
    twin[31] ^= 1;
    lock(&nodes[1].velod.state).blobs.insert(BlobId::from_bytes(twin), vec![]);
    assert!(resolve(digits).await.expect_err("ambiguous").contains("ambiguous"));
}

/// A tree of one large file, stored on a node.
fn tree(node: &Node) -> (ObjectId, BlobId) {
    let large = vec![5u8; 200_000];
    let mut state = lock(&node.velod.state);
    let file = state.store(&large);
    let mut builder = TreeBuilder::new();
    let named = Named { blob: file, size_bytes: large.len() as u64 };
    builder.content(b"large", EntryKind::File, named, 0).expect("an entry");
    let table = builder.finish(&[]).expect("a tree").into_bytes();
    (ObjectId { kind: ObjectKind::Tree, blob: state.store(&table) }, file)
}

#[tokio::test]
async fn what_no_member_has_comes_from_the_origin_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let (nodes, _net) = cluster(2, Some(folder.path())).await;
    let (root, file) = tree(&nodes[0]);
    let origin = nodes[0].control.origin.as_ref().expect("an origin");
    let put = origin.put(&nodes[0].control.velod, root).await.expect("stored");
    assert_eq!((put.blobs, put.present), (2, 0));
    let again = origin.put(&nodes[0].control.velod, root).await.expect("stored");
    assert_eq!((again.blobs, again.bytes, again.present), (0, 0, 2));
    assert!(
        origin.has(&root.blob).await.expect("asked") && !origin.has(&BlobId::of(b"x")).await.expect("asked")
    );
    lock(&nodes[0].velod.state).blobs.clear();

    let job = nodes[1].control.pull(vec![root], false, 0).await.expect("a job");
    until("all of it is here", || {
        let state = lock(&nodes[1].velod.state);
        state.blobs.contains_key(&root.blob) && state.blobs.contains_key(&file)
    })
    .await;
    until("the job is done", || lock(&nodes[1].velod.state).jobs[&job].state == JobState::Complete).await;
    assert_eq!(nodes[1].control.metrics.origin_read_bytes.get(), put.bytes);

    // Damage in the origin is found when it is read.
    let digits = file.to_hex();
    let path = folder.path().join("velo-1").join(&digits[..2]).join(&digits);
    std::fs::write(&path, vec![6u8; 200_000]).expect("written");
    lock(&nodes[1].velod.state).blobs.clear();
    let origin = nodes[1].control.origin.as_ref().expect("an origin");
    let velod = &nodes[1].control.velod;
    let absent = BlobId::of(b"absent");
    let fetched = origin.fetch(velod, &[file, root.blob, absent]).await;
    assert_eq!(fetched.moved.blobs, 1, "only the table: {fetched:?}");
    let mut failed = fetched.failed;
    failed.sort_by_key(|(blob, _)| *blob != file);
    let [(damaged, mismatch), (_, OriginError::Absent(named))] = &failed[..] else { panic!("{failed:?}") };
    assert!(
        matches!(mismatch, OriginError::Velod(VelodError::Refused(error)) if error.code == ErrorCode::Mismatch)
    );
    assert_eq!((*damaged, *named), (file, absent));
    // What it did not give is not asked for again soon, and nobody relies on this node for it.
    assert!(origin.offers(&file).is_none() && origin.offers(&absent).is_none());
    assert_eq!(origin.offers(&root.blob), Some(0));
    assert!(origin.fetch(velod, &[file, absent]).await.failed.is_empty());
    assert!(!origin.is_reading());
}

/// Puts a tree into the origin and takes it from the node that put it.
async fn only_in_the_origin(node: &Node) -> (ObjectId, BlobId) {
    let (root, file) = tree(node);
    let origin = node.control.origin.as_ref().expect("an origin");
    origin.put(&node.control.velod, root).await.expect("stored");
    lock(&node.velod.state).blobs.clear();
    (root, file)
}

fn complete(node: &Node, job: u64) -> bool {
    lock(&node.velod.state).jobs[&job].state == JobState::Complete
}

#[tokio::test]
async fn the_origin_gives_what_is_missing_whoever_has_the_table() {
    let folder = tempfile::tempdir().expect("a folder");
    let (nodes, _net) = cluster(2, Some(folder.path())).await;
    let (root, file) = tree(&nodes[0]);
    let origin = nodes[0].control.origin.as_ref().expect("an origin");
    origin.put(&nodes[0].control.velod, root).await.expect("stored");
    // All but the table was evicted; and the table does not come from there either.
    lock(&nodes[0].velod.state).blobs.remove(&file);
    let job = nodes[1].control.pull(vec![root], false, 0).await.expect("a job");
    until("the job is done", || complete(&nodes[1], job)).await;
    assert!(lock(&nodes[1].velod.state).blobs.contains_key(&file));
}

#[tokio::test]
async fn pullers_that_cannot_read_the_origin_are_not_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let knows = |node| [0, 5].contains(&node).then_some(folder.path());
    let (nodes, _net) = cluster_where(6, knows).await;
    let (root, _) = only_in_the_origin(&nodes[0]).await;
    let mut jobs = Vec::new();
    for node in &nodes[1..] {
        jobs.push(node.control.pull(vec![root], false, 0).await.expect("a job"));
    }
    until("the one with an origin has it", || complete(&nodes[5], jobs[4])).await;
    assert!(!complete(&nodes[1], jobs[0]));
}

#[tokio::test]
async fn another_puller_takes_over_where_the_origin_of_one_lacks_it() {
    let (full, empty) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let knows = |node| Some(if [0, 5].contains(&node) { full.path() } else { empty.path() });
    let (nodes, _net) = cluster_where(6, knows).await;
    let (root, _) = only_in_the_origin(&nodes[0]).await;
    let mut jobs = Vec::new();
    for node in &nodes[1..] {
        jobs.push(node.control.pull(vec![root], false, 0).await.expect("a job"));
    }
    until("the one whose origin has it reads it", || complete(&nodes[5], jobs[4])).await;
}

#[tokio::test]
async fn a_job_that_gets_nothing_from_the_origin_waits_and_does_not_seem_to_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let (nodes, _net) = cluster(1, Some(folder.path())).await;
    let (root, file) = only_in_the_origin(&nodes[0]).await;
    let digits = file.to_hex();
    std::fs::remove_file(folder.path().join("velo-1").join(&digits[..2]).join(&digits)).expect("removed");
    let job = nodes[0].control.pull(vec![root], false, 0).await.expect("a job");
    until("the table is here", || lock(&nodes[0].velod.state).blobs.contains_key(&root.blob)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let wakes = || lock(&nodes[0].velod.state).wakes.get(&job).copied();
    let before = wakes();
    tokio::time::sleep(Duration::from_millis(2000)).await;
    assert_eq!(wakes(), before, "nothing came, and nothing is told to the job");
    assert_eq!(lock(&nodes[0].velod.state).jobs[&job].missing, [file]);
}

#[tokio::test]
async fn a_control_plane_that_starts_again_feeds_the_jobs_that_it_finds() {
    let (mut nodes, _net) = cluster(2, None).await;
    let root = blob(b"left behind");
    let velod = nodes[1].control.velod.clone();
    let job = velod.pull(vec![root], vec![None], false, vec![], 0).await.expect("a job");
    lock(&nodes[0].velod.state).store(b"left behind");
    nodes[1].restart().await;
    until("the job gets a source", || sources(&nodes[1], job) == [nodes[0].id()]).await;
}

#[tokio::test(start_paused = true)]
async fn jobs_that_nobody_wants_do_not_wait_for_ever() {
    let (nodes, _net) = cluster(1, None).await;
    let root = blob(b"nowhere");
    let state = |job| lock(&nodes[0].velod.state).jobs[&job].state.clone();
    let left = nodes[0].control.pull(vec![root], false, 0).await.expect("a job");
    let wanted = nodes[0].control.pull(vec![root], false, 0).await.expect("a job");
    for _ in 0..59 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        nodes[0].control.feed_job(wanted).await.expect("asked");
    }
    assert_eq!(state(left), JobState::Waiting);
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        nodes[0].control.feed_job(wanted).await.expect("asked");
    }
    assert_eq!(state(left), JobState::Cancelled);
    assert_eq!(state(wanted), JobState::Waiting, "somebody asks about it");
}

#[tokio::test]
async fn an_origin_takes_nothing_that_is_not_what_its_id_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let (nodes, _net) = cluster(1, Some(folder.path())).await;
    let wrong = BlobId::of(b"right");
    lock(&nodes[0].velod.state).blobs.insert(wrong, b"wrong".to_vec());
    let origin = nodes[0].control.origin.as_ref().expect("an origin");
    let root = ObjectId { kind: ObjectKind::Blob, blob: wrong };
    assert!(matches!(origin.put(&nodes[0].control.velod, root).await, Err(OriginError::Mismatch(_))));
    assert!(!origin.has(&wrong).await.expect("asked"));
    let no_tree = ObjectId { kind: ObjectKind::Tree, blob: lock(&nodes[0].velod.state).store(b"no tree") };
    assert!(matches!(origin.put(&nodes[0].control.velod, no_tree).await, Err(OriginError::Tree { .. })));
    for bad in ["", "/tmp", "http://x/", "file://relative", "file:///no/such/folder/here"] {
        assert!(crate::origin::Origin::open(bad).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn many_who_ask_the_origin_at_once_share_one_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let (nodes, _net) = cluster(1, Some(folder.path())).await;
    let control = &nodes[0].control;
    let content = vec![9u8; 3_000_000];
    let root = blob(&content);
    lock(&nodes[0].velod.state).store(&content);
    let origin = control.origin.as_ref().expect("an origin");
    origin.put(&control.velod, root).await.expect("stored");
    lock(&nodes[0].velod.state).blobs.clear();
    let asked = [root.blob];
    let fetches = (0..8).map(|_| origin.fetch(&control.velod, &asked));
    let fetched = futures_util::future::join_all(fetches).await;
    assert!(fetched.iter().all(|fetched| fetched.failed.is_empty()), "{fetched:?}");
    assert_eq!(fetched.iter().map(|fetched| fetched.moved.blobs).sum::<u64>(), 1);
    assert!(!origin.is_reading());
    tokio::time::sleep(Duration::from_millis(1)).await;
}
