//! Single rules of the planner, with events by hand.

use velo_object::{BlobId, NodeId, PIECE_BYTES, PieceSet, Pieces};
use velo_swarm::*;

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 32])
}

fn blob(name: &str) -> BlobId {
    BlobId::of(name.as_bytes())
}

fn planner() -> Planner {
    let mut planner = Planner::new(node(0), Limits::default(), 7);
    for number in 1..=3 {
        assert!(planner.add_source(0, node(number), SourceInfo { distance: 1 }));
    }
    planner
}

fn want(planner: &mut Planner, name: &str, known: Known, priority: u8) -> BlobId {
    assert!(planner.add_blob(0, BlobSpec { blob: blob(name), known, have: None, priority }));
    blob(name)
}

fn all_of(size: u64) -> Have {
    let count = Pieces::new(size).count();
    Have { size_bytes: Some(size), have: PieceSet::full(count), holes: PieceSet::new(count) }
}

fn drain(planner: &mut Planner, now: u64) -> Vec<Action> {
    std::iter::from_fn(|| planner.poll(now)).collect()
}

#[test]
fn what_an_earlier_run_left_is_not_asked_for() {
    let mut planner = planner();
    let mut have = PieceSet::full(10);
    have.remove(4);
    let spec =
        BlobSpec { blob: blob("a"), known: Known::Outboard(10 * PIECE_BYTES), have: Some(have), priority: 0 };
    assert!(planner.add_blob(0, spec));
    planner.handle_have(0, &node(1), &blob("a"), all_of(10 * PIECE_BYTES));
    let actions = drain(&mut planner, 0);
    assert!(matches!(actions[..], [Action::ReadPiece { index: 4, .. }]), "{actions:?}");
    planner.handle_verified(1, &blob("a"), 4);
    // The piece came another way: its read is cancelled.
    let actions = drain(&mut planner, 1);
    assert!(matches!(actions[..], [Action::Cancel { .. }, Action::BlobReady { .. }]), "{actions:?}");
    assert_eq!(planner.next_deadline(), None, "nothing is left to do");
}

#[test]
fn all_that_is_there_already_is_ready_at_once() {
    let mut planner = planner();
    let size = 3 * PIECE_BYTES;
    let spec = BlobSpec {
        blob: blob("a"),
        known: Known::Outboard(size),
        have: Some(PieceSet::full(3)),
        priority: 0,
    };
    assert!(planner.add_blob(0, spec));
    assert_eq!(drain(&mut planner, 0), [Action::BlobReady { blob: blob("a") }]);
    // Without its outboard, that comes first.
    let spec =
        BlobSpec { blob: blob("b"), known: Known::Size(size), have: Some(PieceSet::full(3)), priority: 0 };
    assert!(planner.add_blob(0, spec));
    planner.handle_have(0, &node(1), &blob("b"), all_of(size));
    let actions = drain(&mut planner, 0);
    let [Action::ReadOutboard { tag, bytes: 112, .. }] = actions[..] else { panic!("{actions:?}") };
    planner.handle_outboard(1, tag);
    assert_eq!(drain(&mut planner, 1), [Action::BlobReady { blob: blob("b") }]);
}

#[test]
fn the_empty_blob_is_read_from_nobody() {
    let mut planner = planner();
    let id = want(&mut planner, "", Known::Size(0), 0);
    let actions = drain(&mut planner, 0);
    assert!(matches!(actions[..], [Action::TryHole { index: 0, len: 0, .. }]), "{actions:?}");
    planner.handle_verified(1, &id, 0);
    assert_eq!(drain(&mut planner, 1), [Action::BlobReady { blob: id }]);
}

#[test]
fn an_unknown_size_is_proven_by_the_last_piece_before_anything_else_is_asked() {
    let mut planner = planner();
    let id = want(&mut planner, "a", Known::Nothing, 0);
    planner.handle_have(0, &node(1), &id, all_of(5 * PIECE_BYTES + 9));
    planner.handle_have(0, &node(2), &id, all_of(5 * PIECE_BYTES + 9));
    let actions = drain(&mut planner, 0);
    let [Action::ReadOutboard { tag, node: sender, .. }] = actions[..] else { panic!("{actions:?}") };
    planner.handle_outboard(1, tag);
    let actions = drain(&mut planner, 1);
    let [Action::ReadPiece { tag, node: asked, index: 5, len: 9, .. }] = actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(asked, sender, "who sent the outboard also proves it");
    assert_eq!(planner.handle_piece_read(2, tag, 9), Arrival::Check);
    planner.handle_verified(3, &id, 5);
    let actions = drain(&mut planner, 3);
    assert_eq!(actions[0], Action::SizeConfirmed { blob: id, size_bytes: 5 * PIECE_BYTES + 9 });
    assert!(actions.len() >= 3, "now both are asked: {actions:?}");
}

#[test]
fn what_does_not_fit_is_refused_for_good() {
    let mut planner = planner();
    let id = want(&mut planner, "a", Known::Size(5 * PIECE_BYTES), 0);
    planner.handle_have(0, &node(1), &id, all_of(4 * PIECE_BYTES));
    planner.handle_have(0, &node(2), &id, Have { have: PieceSet::full(6), ..all_of(5 * PIECE_BYTES) });
    planner.handle_have(0, &node(3), &id, Have { size_bytes: Some(u64::MAX), ..all_of(1) });
    let why = DropReason::WrongSize;
    let drops: Vec<_> = (1..=3).map(|at| Action::Drop { node: node(at), blob: id, why }).collect();
    assert_eq!(drain(&mut planner, 0), drops);
    planner.handle_have(1, &node(1), &id, all_of(5 * PIECE_BYTES));
    assert_eq!(drain(&mut planner, 1), []);
    // Indexes past the end are nobody's.
    planner.handle_have_more(1, &node(2), &id, &[(u64::MAX, true), (5, false)]);
    assert_eq!(drain(&mut planner, 1), []);
}

#[test]
fn dead_and_unknown_tags_are_ignored() {
    let mut planner = planner();
    let id = want(&mut planner, "a", Known::Outboard(PIECE_BYTES * 4), 0);
    planner.handle_have(0, &node(1), &id, all_of(PIECE_BYTES * 4));
    let actions = drain(&mut planner, 0);
    let Action::ReadPiece { tag, .. } = actions[0] else { panic!("{actions:?}") };
    planner.remove_source(1, &node(1));
    assert_eq!(planner.handle_piece_read(2, tag, 1 << 20), Arrival::Discard);
    assert_eq!(planner.handle_bad_piece(2, tag), None);
    assert_eq!(planner.handle_bad_outboard(2, 12345), None);
    planner.handle_failed(2, tag, Failure::Stalled);
    planner.handle_outboard(2, tag);
    planner.handle_verified(2, &blob("never heard of"), 3);
    planner.handle_verified(2, &id, u64::MAX);
    assert_eq!(planner.progress(&id).map(|at| (at.verified, at.in_flight, at.sources)), Some((0, 0, 0)));
    planner.remove_blob(3, &id);
    assert_eq!(planner.progress(&id), None);
    assert_eq!(drain(&mut planner, 3), []);
}

#[test]
fn the_higher_priority_goes_first_and_can_be_raised() {
    let mut planner = planner();
    for (name, priority) in [("a", 1), ("b", 9), ("c", 5)] {
        let id = want(&mut planner, name, Known::Size(10), priority);
        planner.handle_have(0, &node(1), &id, all_of(10));
    }
    let again = BlobSpec { blob: blob("a"), known: Known::Size(10), have: None, priority: 7 };
    assert!(!planner.add_blob(0, again));
    let asked: Vec<BlobId> = drain(&mut planner, 0)
        .into_iter()
        .map(|action| match action {
            Action::ReadPiece { blob, .. } => blob,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(asked, [blob("b"), blob("a"), blob("c")]);
}

#[test]
fn limits_hold() {
    let limits =
        Limits { sources: 1, blobs: 1, map_words_per_source: 8, bytes_in_flight: 1, ..Limits::default() };
    let mut planner = Planner::new(node(0), limits, 1);
    assert!(planner.add_source(0, node(1), SourceInfo::default()));
    assert!(!planner.add_source(0, node(2), SourceInfo::default()), "one source");
    assert!(!planner.add_source(0, node(0), SourceInfo::default()), "not itself");
    let size = 10_000 * PIECE_BYTES;
    let id = want(&mut planner, "a", Known::Outboard(size), 0);
    let other = BlobSpec { blob: blob("b"), known: Known::Nothing, have: None, priority: 0 };
    assert!(!planner.add_blob(0, other), "one blob");
    // A partial map that is too large counts as none; a complete one needs no memory.
    let mut have = PieceSet::new(10_000);
    have.insert(3);
    planner.handle_have(0, &node(1), &id, Have { have, ..all_of(size) });
    assert_eq!(drain(&mut planner, 0), []);
    planner.handle_have(0, &node(1), &id, all_of(size));
    assert_eq!(
        drain(&mut planner, 0).len(),
        1,
        "one piece at least, and no more than the bytes in flight allow"
    );
}

#[test]
fn the_same_events_give_the_same_actions() {
    let run = || {
        let mut planner = planner();
        let mut log = Vec::new();
        for name in 0..50 {
            let id = want(&mut planner, &name.to_string(), Known::Outboard(8 * PIECE_BYTES), 0);
            for source in 1..=3 {
                planner.handle_have(0, &node(source), &id, all_of(8 * PIECE_BYTES));
            }
        }
        for now in 1..2000 {
            let Some(action) = planner.poll(now) else { continue };
            if let Action::ReadPiece { tag, blob, index, len, .. } = action {
                if tag % 7 == 0 {
                    planner.handle_failed(now, tag, Failure::Refused);
                } else {
                    planner.handle_piece_read(now, tag, len);
                    planner.handle_verified(now, &blob, index);
                }
            }
            log.push(action);
        }
        log
    };
    let first = run();
    assert!(first.len() > 400);
    assert_eq!(first, run());
}

#[test]
fn an_outboard_that_is_here_may_be_checked_for_long() {
    let mut planner = planner();
    let id = want(&mut planner, "a", Known::Nothing, 0);
    planner.handle_have(0, &node(1), &id, all_of(5 * PIECE_BYTES));
    let actions = drain(&mut planner, 0);
    let [Action::ReadOutboard { tag, .. }] = actions[..] else { panic!("{actions:?}") };
    planner.handle_outboard_read(1, tag);
    for second in 1..100 {
        assert_eq!(drain(&mut planner, second * 1_000_000), [], "at {second} s");
    }
    planner.handle_outboard(100_000_000, tag);
    let actions = drain(&mut planner, 100_000_000);
    assert!(matches!(actions[..], [Action::ReadPiece { index: 4, .. }]), "{actions:?}");
}

#[test]
fn an_outboard_whose_sender_goes_during_the_check_is_asked_elsewhere() {
    let mut planner = planner();
    let id = want(&mut planner, "a", Known::Nothing, 0);
    planner.handle_have(0, &node(1), &id, all_of(5 * PIECE_BYTES));
    planner.handle_have(0, &node(2), &id, all_of(5 * PIECE_BYTES));
    let actions = drain(&mut planner, 0);
    let [Action::ReadOutboard { tag, node: sender, .. }] = actions[..] else { panic!("{actions:?}") };
    planner.handle_outboard_read(1, tag);
    planner.remove_source(2, &sender);
    assert_eq!(drain(&mut planner, 2), [], "it is still being checked");
    planner.handle_outboard(3, tag);
    let actions = drain(&mut planner, 3);
    let [Action::OutboardDropped { .. }, Action::ReadOutboard { node: other, .. }] = actions[..] else {
        panic!("{actions:?}")
    };
    assert_ne!(other, sender);
}
