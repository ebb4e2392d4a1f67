//! Several nodes get the same content at once: they feed each other, and the first sends each byte about once.

use velo_tests::Cluster;
use velo_tests::content::{assert_same, many_files, random_file};

velo_tests::over_each_fabric!(peers_feed_peers);

fn peers_feed_peers(fabric: &'static str) {
    let cluster = Cluster::over(fabric, 4);
    let source = cluster.path("source");
    many_files(&source.join("small"), 1, 600, 4096);
    for index in 0..12 {
        random_file(&source.join(format!("large-{index}")), 100 + index, (9 + index) << 20);
    }
    let id = cluster.nodes[0].json(&["put", source.to_str().expect("UTF-8")])["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    std::thread::scope(|scope| {
        for (at, node) in cluster.nodes.iter().enumerate().skip(1) {
            let (id, dest) = (&id, cluster.path(&format!("dest-{at}")));
            scope.spawn(move || node.ok(&["get", id, dest.to_str().expect("UTF-8")]));
        }
    });
    for at in 1..4 {
        assert_same(&source, &cluster.path(&format!("dest-{at}")));
    }
    let bytes: u64 = (0..12).map(|index| (9 + index) << 20).sum::<u64>() + 600 * 4096;
    let egress = cluster.nodes[0].counter("fabric_sent_bytes_total");
    let ratio = egress as f64 / bytes as f64;
    println!("source egress ratio {ratio:.2}");
    assert!(ratio <= 1.5, "{egress} bytes left the first node for {bytes} bytes of content: {ratio:.2}");
    for node in &cluster.nodes[1..] {
        assert_eq!(node.counter("pieces_refetched_total"), 0);
    }
    cluster.assert_carried_by(fabric);
}
