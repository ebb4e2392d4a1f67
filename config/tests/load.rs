//! The default file equals the types; wrong input is refused with the key, the place and what would be right.

use std::path::Path;

use velo_config::{Bytes, Config, ConfigError, Count, DEFAULT_FILE, Fabric, Place, Poll, Rate};

fn from(text: &str) -> Result<Config, ConfigError> {
    Config::from_toml(Path::new("velo.toml"), text)
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let home = [("HOME", "/home/u"), ("XDG_DATA_HOME", "/data")];
    home.iter().chain(pairs).map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

#[test]
fn the_default_file_says_every_key_and_its_default() {
    assert_eq!(from(DEFAULT_FILE).unwrap(), Config::default());
    let file: toml::Table = DEFAULT_FILE.parse().unwrap();
    assert_eq!(file, toml::Table::try_from(Config::default()).unwrap());
    // Every key has a comment above it.
    let lines: Vec<&str> = DEFAULT_FILE.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        if line.contains(" = ") && !line.starts_with('#') {
            assert!(lines[i - 1].starts_with('#'), "no comment above {line}");
        }
    }
}

#[test]
fn later_sources_win() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("velo.toml");
    std::fs::write(&file, "[net]\nstreams_per_peer = 2\nstall_timeout_ms = 500\n[dataplane]\nworkers = 3\n")
        .unwrap();
    let set = [("net.stall_timeout_ms".to_string(), "900".to_string())];
    let vars = env(&[
        ("VELO_NET_STALL_TIMEOUT_MS", "700"),
        ("VELO_NET_LISTEN", "127.0.0.1:0, [::1]:0"),
        ("VELO_DATAPLANE_MEMORY", "64MiB"),
        ("VELO_DATAPLANE_POLL", "busy"),
        ("VELO_NET_TRUSTED", "true"),
        ("VELO_NET_FABRICS", "udp"),
        ("VELO_NET_LINE_RATE", "10Gbit/s"),
        ("VELO_FABRIC_UDP_BUSY_POLL_US", "50"),
        ("VELO_FABRIC_DPDK_ADDRESS", "192.0.2.1/24"),
        ("VELO_LOG", "not ours"),
        ("VELO_SOMETHING_ELSE", "not ours"),
        ("VELO_DPDK_PLUGIN", "no key"),
    ]);
    let config = Config::load(Some(&file), vars, &set).unwrap();
    assert_eq!(config.net.streams_per_peer, 2);
    assert_eq!(config.net.stall_timeout_ms, 900);
    assert_eq!(config.net.listen, ["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()]);
    assert_eq!(config.dataplane.memory, Bytes(64 << 20));
    assert_eq!(config.dataplane.workers, Count::Fixed(3));
    assert_eq!(config.dataplane.poll, Poll::Busy);
    assert!(config.net.trusted);
    assert_eq!(config.fabrics(), [Fabric::Udp, Fabric::Tcp]);
    assert_eq!(config.net.line_rate, Rate(10_000_000_000));
    assert_eq!(config.fabric.udp.busy_poll_us, 50);
    assert_eq!(config.fabric.dpdk.address.map(|subnet| subnet.prefix_bits), Some(24));
    assert_eq!(config.node.data_dir, Path::new("/data/velo"));
    assert_eq!(config.paths().socket(), Path::new("/data/velo/run/velod.sock"));
}

#[test]
fn an_unknown_key_names_the_nearest_and_its_place() {
    let cases = [
        ("[net]\n\nlisen = []\n", "net.lisen", "net.listen", 3),
        ("[nett]\nlisten = []\n", "nett", "net", 1),
        ("[store]\nmemory = \"1GiB\"\n", "store.memory", "dataplane.memory", 2),
        ("trusted = true\n", "trusted", "net.trusted", 1),
        ("[fabric.udp]\nlisen = \"\"\n", "fabric.udp.lisen", "fabric.udp.listen", 2),
        ("[fabric.upd]\nlisten = \"\"\n", "fabric.upd", "fabric.udp", 1),
        ("[fabric]\nudp.gros = true\n", "fabric.udp.gros", "fabric.udp.gso", 2),
        ("[net.udp]\ngso = true\n", "net.udp", "fabric.udp", 1),
        ("[fabric]\ninterface = \"eth0\"\n", "fabric.interface", "fabric.xdp.interface", 2),
        ("[dataplane]\nverfiy_threads = 1\n", "dataplane.verfiy_threads", "dataplane.verify_threads", 2),
    ];
    for (text, wrong, right, line) in cases {
        match from(text) {
            Err(ConfigError::UnknownKey { key, nearest, place }) => {
                assert_eq!((key.as_str(), nearest.as_str()), (wrong, right));
                assert_eq!(place, Place::File("velo.toml".into(), line));
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    let error = Config::load(None, env(&[("VELO_NET_TRUSTD", "1")]), &[]).unwrap_err().to_string();
    assert!(error.contains("VELO_NET_TRUSTD") && error.contains("`net.trusted`"), "{error}");
    let error = Config::load(None, env(&[("VELO_NETT_LISTEN", "[::]:1")]), &[]).unwrap_err().to_string();
    assert!(error.contains("VELO_NETT_LISTEN") && error.contains("`net`"), "{error}");
    let wrong = env(&[("VELO_FABRIC_UDP_LISTN", "1")]);
    let error = Config::load(None, wrong, &[]).unwrap_err().to_string();
    assert!(error.contains("VELO_FABRIC_UDP_LISTN") && error.contains("`fabric.udp.listen`"), "{error}");
    for key in ["net", "net.lisden", "listen", "fabric.udp", "fabric.udp.x.y", ""] {
        let set = [(key.to_string(), "x".to_string())];
        let error = Config::load(None, env(&[]), &set).unwrap_err();
        assert!(matches!(error, ConfigError::UnknownKey { .. }), "{key}: {error}");
    }
}

#[test]
fn wrong_values_are_refused_with_their_key_and_line() {
    for (text, key) in [
        ("[net]\nlisten = \"0.0.0.0:1\"", "net.listen"),
        ("[net]\nlisten = [\"nowhere\"]", "net.listen"),
        ("[net]\nstreams_per_peer = -1", "net.streams_per_peer"),
        ("[net]\nstall_timeout_ms = 99999999999999999999", "net.stall_timeout_ms"),
        ("[store]\ncapacity = \"many\"", "store.capacity"),
        ("[store]\ncapacity = 1.5", "store.capacity"),
        ("[store]\ndurability = \"maybe\"", "store.durability"),
        ("[dataplane]\nworkers = \"some\"", "dataplane.workers"),
        ("[gossip]\nadvertise = \"x\"", "gossip.advertise"),
        ("[net]\nfabrics = [\"pigeon\"]", "net.fabrics"),
        ("[net]\nline_rate = \"10GB\"", "net.line_rate"),
        ("[fabric.udp]\nlisten = \"x\"", "fabric.udp.listen"),
        ("[fabric.udp]\nbusy_poll_us = -1", "fabric.udp.busy_poll_us"),
        ("[fabric.dpdk]\naddress = \"192.0.2.1/33\"", "fabric.dpdk.address"),
        ("[fabric.dpdk]\ngateway = \"x\"", "fabric.dpdk.gateway"),
        ("[fabric]\nudp = 3", "fabric.udp"),
    ] {
        match from(text) {
            Err(ConfigError::Value { key: at, place, .. }) => {
                assert_eq!(at, key);
                assert_eq!(place, Place::File("velo.toml".into(), 2));
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    for text in [
        "[net]\nstreams_per_peer = 0",
        "[net]\nstreams_per_peer = 65",
        "[net]\nstall_timeout_ms = 1",
        "[net]\nlisten = []",
        "[net]\nadvertise = [\"0.0.0.0:7440\"]",
        "[net]\nmax_sessions = 0",
        "[gossip]\nadvertise = \"10.0.0.1:0\"",
        "[net]\nfabrics = [\"udp\", \"tcp\", \"udp\"]",
        "[net]\nline_rate = \"1kbit/s\"",
        "[fabric.udp]\nadvertise = \"0.0.0.0:7442\"",
        "[fabric.udp]\nworkers = 65",
        "[fabric.udp]\nbusy_poll_us = 10001",
        "[fabric.xdp]\ninterface = \"sixteen-letters-\"",
        "[fabric.xdp]\nport = 0",
        "[fabric.dpdk]\nqueues = 0",
        "[fabric.dpdk]\neal = [\"a\\u0000\"]",
        "[fabric.rdma]\ndevices = [\"mlx5_0:0\"]",
        "[fabric.rdma]\ndevices = [\"../mlx5_0\"]",
        "[fabric.rdma]\nlease_ms = 99",
        "[fabric.rdma]\nlent_per_peer = \"1KiB\"",
        "[store]\ncapacity = \"1KiB\"",
        "[dataplane]\nworkers = 0",
        "[dataplane]\nmemory = \"1MiB\"",
        "[origin]\nurl = \"s3://bucket\"",
        "[log]\nlevel = \"loud\"",
        "[node]\nzone = \"\"",
        "[node]\nname = \"a\\u0007b\"",
    ] {
        match from(text) {
            Err(ConfigError::Limit { place, .. }) => assert_eq!(place, Place::File("velo.toml".into(), 2)),
            other => panic!("{text}: {other:?}"),
        }
    }
    let no_address = from("[fabric.dpdk]\ndevice = \"net_null0\"");
    assert!(matches!(no_address, Err(ConfigError::Limit { key: "fabric.dpdk.address", .. })));
    assert!(matches!(from("[net\n"), Err(ConfigError::Syntax { .. })));
    assert!(matches!(from("net = 3\n"), Err(ConfigError::Value { .. })));
    assert!(matches!(
        Config::load(Some(Path::new("/nonexistent/velo.toml")), env(&[]), &[]),
        Err(ConfigError::Read { .. })
    ));
}
