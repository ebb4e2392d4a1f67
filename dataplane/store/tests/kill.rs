//! A process that puts and receives is killed at random moments: what it acknowledged is there, what is there is whole.

mod bench;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::process::{Command, Stdio};
use std::time::Duration;

use bench::*;
use velo_object::{BlobId, EntryKind, ObjectId, ObjectKind, PieceSet, TreeBuilder};
use velo_store::{StageKind, Store, StoreOptions};

const DIR: &str = "VELO_STORE_KILL_DIR";
const ROUND: &str = "VELO_STORE_KILL_ROUND";

/// Not a test by itself: what the killed process does. It says on its output what has been acknowledged.
#[test]
fn victim() {
    let (Some(dir), Ok(round)) = (std::env::var_os(DIR), std::env::var(ROUND)) else { return };
    let round: u64 = round.parse().expect("a number");
    let (store, _) = Store::open(StoreOptions { threads: 2, ..StoreOptions::new(dir) }).expect("opens");
    say("open");
    for step in 0.. {
        let seed = round * 1000 + step;
        say(&format!("put {}", put_tree(&store, seed).blob.to_hex()));
        let content = noise((2 << 20) + 5, seed + 500);
        let (id, outboard) = (BlobId::of(&content), outboard_of(&content));
        let staging =
            store.stage(id, content.len() as u64, outboard.clone(), None, StageKind::Blob).expect("room");
        for index in 0..3 {
            staging.write(&piece(&content, outboard.as_ref(), index)).expect("room");
            say(&format!("piece {} {index}", id.to_hex()));
        }
        staging.commit().expect("whole");
        say(&format!("received {}", id.to_hex()));
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@{line}").and_then(|()| out.flush()).expect("the parent listens");
}

fn put_tree(store: &Store, seed: u64) -> ObjectId {
    let mut put = store.begin_put().expect("open");
    let mut builder = TreeBuilder::new();
    for n in 0..20u64 {
        let ingested = put.file(&file_of(&noise((n * n * 700) as usize, seed + n * 7919))).expect("room");
        let path = format!("{n:03}");
        builder.content(path.as_bytes(), EntryKind::File, named(&ingested), 0).expect("in order");
    }
    let packs = put.finish_packs().expect("room");
    let tree = builder.finish(&packs.iter().map(named).collect::<Vec<_>>()).expect("a tree");
    let root = ObjectId { kind: ObjectKind::Tree, blob: tree.id() };
    put.commit(root, Some(tree.as_bytes())).expect("room");
    root
}

#[test]
fn what_was_acknowledged_survives_kills_at_random_moments() {
    let dir = tempdir();
    let mut roots: Vec<BlobId> = Vec::new();
    let mut received: Vec<BlobId> = Vec::new();
    let mut acknowledged = 0;
    for round in 0..6u64 {
        let pieces = run_and_kill(dir.path(), round, &mut roots, &mut received);
        let (store, recovery) = open_as_victim(dir.path());
        assert!(!recovery.clean && recovery.damaged.is_empty(), "{recovery:?}");
        for root in &roots {
            let tree = store.tree(root).expect("acknowledged");
            for entry in tree.iter() {
                assert_eq!(BlobId::of(&read(&store, &entry.blob)), entry.blob);
            }
        }
        let mut pinned: Vec<BlobId> = store.pins().expect("book").into_iter().map(|root| root.blob).collect();
        pinned.retain(|root| !roots.contains(root));
        assert!(pinned.len() <= 1, "at most the put that was cut off just before it was acknowledged");
        for root in pinned {
            assert!(store.tree(&root).is_ok(), "a pin is written when all of it is there");
            roots.push(root);
        }
        for id in &received {
            assert_eq!(BlobId::of(&read(&store, id)), *id);
        }
        for (id, have) in pieces {
            let here = store.have(&id).expect("index").expect("it was written");
            assert!(have.iter().all(|index| here.have.contains(index)), "a verified piece was lost");
        }
        let report = store.verify(|_| ControlFlow::Continue(())).expect("readable");
        assert_eq!(report.damaged, [], "what is visible is whole");
        acknowledged = roots.len() + received.len();
    }
    assert!(acknowledged > 0, "the victims never got to acknowledge anything");
}

fn open_as_victim(dir: &std::path::Path) -> (Store, velo_store::Recovery) {
    Store::open(StoreOptions { threads: 2, ..StoreOptions::new(dir) }).expect("recovers by itself")
}

/// Gives the pieces that the victim said were written.
fn run_and_kill(
    dir: &std::path::Path,
    round: u64,
    roots: &mut Vec<BlobId>,
    received: &mut Vec<BlobId>,
) -> HashMap<BlobId, PieceSet> {
    let mut victim = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this test runs");
    let lines = BufReader::new(victim.stdout.take().expect("piped")).lines();
    let mut pieces: HashMap<BlobId, PieceSet> = HashMap::new();
    // Killed in the middle of what follows the so-manieth line, a little later each round.
    let (last, delay) = (3 + round * 3, Duration::from_micros(700 * round));
    let mut seen = 0;
    for line in lines {
        let line = line.expect("text");
        let Some((_, said)) = line.split_once('@') else { continue };
        let words: Vec<&str> = said.split(' ').collect();
        let id = |at: usize| BlobId::from_hex(words[at]).expect("an id");
        match words[0] {
            "put" => roots.push(id(1)),
            "received" => received.push(id(1)),
            "piece" => {
                let index = words[2].parse().expect("a number");
                pieces.entry(id(1)).or_insert_with(|| PieceSet::new(3)).insert(index);
            }
            _ => {}
        }
        seen += 1;
        if seen == last {
            std::thread::sleep(delay);
            victim.kill().expect("it runs");
        }
    }
    victim.wait().expect("it was killed");
    assert!(seen >= last, "the victim ended by itself after {seen} lines");
    pieces
}
