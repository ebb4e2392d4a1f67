//! That choosing is cheap: actions for 50,000 blobs, and for one blob of two million pieces. The times are printed, never judged;
//! what is judged is that nothing is left out.

use std::time::Instant;

use velo_object::{BlobId, NodeId, PIECE_BYTES, PieceSet};
use velo_swarm::*;

fn node(number: u64) -> NodeId {
    NodeId::from_bytes(*BlobId::of(&number.to_le_bytes()).as_bytes())
}

fn blob(number: u64) -> BlobId {
    BlobId::of(&(number << 32).to_le_bytes())
}

fn whole(pieces: u64) -> Have {
    Have {
        size_bytes: Some(pieces * PIECE_BYTES),
        have: PieceSet::full(pieces),
        holes: PieceSet::new(pieces),
    }
}

fn drain(planner: &mut Planner, now: &mut u64) -> (u64, u64) {
    let (mut actions, mut ready) = (0, 0);
    loop {
        match planner.poll(*now) {
            Some(Action::ReadPiece { tag, blob, index, len, .. }) => {
                *now += 10;
                assert_eq!(planner.handle_piece_read(*now, tag, len), Arrival::Check);
                planner.handle_verified(*now, &blob, index);
            }
            Some(Action::ReadOutboard { tag, .. }) => planner.handle_outboard(*now, tag),
            Some(Action::BlobReady { .. }) => ready += 1,
            Some(other) => panic!("unexpected {other:?}"),
            None => return (actions, ready),
        }
        actions += 1;
    }
}

#[test]
fn fifty_thousand_blobs() {
    let mut planner = Planner::new(node(0), Limits::default(), 1);
    let mut now = 1;
    let began = Instant::now();
    for source in 1..=8 {
        assert!(planner.add_source(now, node(source), SourceInfo { distance: 1 }));
    }
    for number in 0..50_000 {
        let spec = BlobSpec { blob: blob(number), known: Known::Size(PIECE_BYTES), have: None, priority: 0 };
        assert!(planner.add_blob(now, spec));
        for source in 1..=8 {
            planner.handle_have(now, &node(source), &blob(number), whole(1));
        }
    }
    let added = Instant::now();
    let (actions, ready) = drain(&mut planner, &mut now);
    println!(
        "50,000 blobs at 8 sources: added in {:?}, {actions} actions in {:?}",
        added - began,
        added.elapsed()
    );
    assert_eq!(ready, 50_000);
    assert_eq!(planner.counters().verified, 50_000);
}

#[test]
fn two_million_pieces() {
    let pieces = 2_000_000;
    let mut planner = Planner::new(node(0), Limits::default(), 1);
    let mut now = 1;
    let size = pieces * PIECE_BYTES;
    let spec = BlobSpec { blob: blob(1), known: Known::Size(size), have: None, priority: 0 };
    assert!(planner.add_blob(now, spec));
    for source in 1..=4 {
        assert!(planner.add_source(now, node(source), SourceInfo { distance: 1 }));
        let mut have = whole(pieces);
        if source > 2 {
            // Two that pull it too and have every third piece.
            have.have = PieceSet::new(pieces);
            (source..pieces).step_by(3).for_each(|index| {
                have.have.insert(index);
            });
        }
        planner.handle_have(now, &node(source), &blob(1), have);
    }
    let began = Instant::now();
    let (mut actions, mut ready) = (0, 0);
    while ready == 0 {
        let (more, done) = drain(&mut planner, &mut now);
        actions += more;
        ready += done;
        // What the other pullers were to get first and never announce is taken after a while.
        now = now.max(planner.next_deadline().unwrap_or(now));
    }
    println!("2,000,000 pieces: {actions} actions in {:?}", began.elapsed());
    assert_eq!(planner.counters().verified, pieces);
}
