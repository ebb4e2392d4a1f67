//! What runs in the guest: two Velo nodes on the disk, held to the ledger of what was acknowledged in former lives, then
//! put, pulled, named and removed on until the power goes. Every line of its output is an [`Event`], or begins with `FAILED`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use velo_guest::ledger::{Content, Event, Ledger};
use velo_object::ObjectId;
use velo_tests::content::{assert_same, many_files, random_file};
use velo_tests::{Node, Settings, wait_until};

/// How many contents are kept: what is older is removed again, so that a check takes seconds.
const KEPT: usize = 8;
const NAMES: u64 = 4;

fn main() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // In one write, so that no event of another thread cuts it; the details follow.
        print(&format!("FAILED {}", info.to_string().replace('\n', " | ")));
        report(info);
        std::process::exit(1);
    }));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["lossy", "write"] => lossy_write(),
        ["lossy", "read"] => lossy_read(),
        ["nodes", "make"] => make(),
        ["nodes", "check"] => drop(start_and_check()),
        ["nodes", "work", seed, writeback_s] => {
            set_writeback(writeback_s.parse().expect("seconds"));
            work(seed.parse().expect("a seed"));
        }
        _ => panic!("unknown arguments {arguments:?}"),
    }
}

/// How long the kernel may keep what was written before it writes it back by itself, though it does not flush it then.
fn set_writeback(seconds: u32) {
    let vm = Path::new("/proc/sys/vm");
    let centiseconds = (seconds * 100).max(1).to_string();
    fs::write(vm.join("dirty_expire_centisecs"), &centiseconds).expect("a setting of the guest's kernel");
    fs::write(vm.join("dirty_writeback_centisecs"), if seconds == 0 { "5" } else { "500" })
        .expect("a setting of the guest's kernel");
}

fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
}

fn say(event: &Event) {
    print(&serde_json::to_string(event).expect("an event is JSON"));
}

fn place(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_else(|| panic!("run this by tests/guest/run: no ${variable}")).into()
}

/// Bytes for which direct I/O has room and alignment.
#[repr(align(4096))]
struct Aligned([u8; 4096]);

/// One file that is flushed, one overwritten by direct I/O, so that only the disk's cache has it, and one that only the page
/// cache has. The power cut must spare the first and neither other.
fn lossy_write() {
    let disk = place("DISK");
    let write = |name: &str, byte: u8| {
        let mut file = File::create(disk.join(name)).expect("a new file");
        file.write_all(&[byte; 4096]).expect("room on the disk");
        file
    };
    for name in ["flushed", "direct"] {
        write(name, 1).sync_all().expect("flushed");
    }
    File::open(&disk).and_then(|dir| dir.sync_all()).expect("flushed");
    let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(disk.join("direct"));
    direct.and_then(|mut file| file.write_all(&Aligned([2; 4096]).0)).expect("direct I/O");
    write("cached", 3);
    print("written");
    std::thread::sleep(Duration::from_secs(3600));
}

fn lossy_read() {
    let first = |name: &str| {
        let mut byte = [0];
        File::open(place("DISK").join(name))
            .and_then(|mut file| file.read_exact(&mut byte))
            .map_or(0, |()| byte[0])
    };
    print(&format!("{} {} {}", first("flushed"), first("direct"), first("cached")));
}

struct Nodes {
    first: Node,
    second: Node,
}

/// The nodes, not started. Their ports are fixed, so that they find each other again; their logs survive the guest.
fn nodes() -> Nodes {
    let node = |name: &str, port: u16| {
        let dir = place("DISK").join(name);
        let node = Node::new(&dir, &Settings::default());
        let http = port + 1;
        let config = format!(
            "[node]\nname = \"{name}\"\n[net]\nlisten = [\"127.0.0.1:{port}\"]\n[fabric.udp]\nlisten = \"127.0.0.1:0\"\n\
             [gossip]\nlisten = \"127.0.0.1:{port}\"\n[http]\nlisten = \"127.0.0.1:{http}\"\n"
        );
        fs::write(dir.join("velo.toml"), config).expect("its configuration");
        let log = dir.join("log");
        if log.symlink_metadata().is_err() {
            std::os::unix::fs::symlink(place("OUT").join(format!("{name}.log")), &log)
                .expect("a link to its log");
        }
        node
    };
    Nodes { first: node("first", 7500), second: node("second", 7510) }
}

fn wait_for_members(nodes: &Nodes) {
    for node in [&nodes.first, &nodes.second] {
        wait_until("both nodes know each other", || {
            let peers = node.json(&["peers"]);
            peers["peers"]
                .as_array()
                .is_some_and(|peers| peers.iter().filter(|peer| peer["state"] == "alive").count() >= 2)
        });
    }
}

/// Makes the cluster and stops it in order: the disk that the lives begin with.
fn make() {
    let mut nodes = nodes();
    nodes.first.ok(&["cluster", "init"]);
    nodes.first.up(&[]);
    let token = nodes.first.json(&["cluster", "token"])["token"].as_str().expect("a token").to_owned();
    let address = nodes.first.listen().expect("it listens").to_string();
    nodes.second.up(&["--join", &address, "--token", &token]);
    wait_for_members(&nodes);
    nodes.second.stop();
    nodes.first.stop();
}

/// The content made from `key`, made in this life at the latest now, by one thread for each `user`.
fn content(user: &str, key: u64) -> PathBuf {
    let dir = place("TMPDIR").join(format!("{user}-{key}"));
    if !dir.exists() {
        many_files(&dir, key, 60 + key as usize % 100, 1500);
        random_file(&dir.join("large"), key, (1 << 20) + key * 77_777 % (2 << 20));
        random_file(&dir.join("middle"), key + 1, 300_000);
    }
    dir
}

/// Starts the nodes on what the last life left and holds them to the ledger.
fn start_and_check() -> (Nodes, Ledger) {
    let mut ledger: Ledger =
        serde_json::from_slice(&fs::read(place("OUT").join("ledger")).expect("a ledger")).expect("a ledger");
    say(&Event::Starting);
    let mut nodes = nodes();
    std::thread::scope(|scope| {
        scope.spawn(|| nodes.first.up(&[]));
        scope.spawn(|| nodes.second.up(&[]));
    });
    let mut read_back = 0;
    std::thread::scope(|scope| {
        let ledger = &ledger;
        let checks = [(&nodes.first, false), (&nodes.second, true)]
            .map(|(node, second)| scope.spawn(move || check_node(node, second, ledger)));
        for check in checks {
            read_back += check.join().expect("a failed check ends the process");
        }
    });
    wait_for_members(&nodes);
    let mut agreed = refs_of(&nodes.first);
    check_refs(&agreed, &ledger);
    // The second node may know of one more that was being set, but of none less.
    wait_until("both nodes agree on the refs", || {
        let second = refs_of(&nodes.second);
        second == agreed || {
            agreed = refs_of(&nodes.first);
            second == agreed
        }
    });
    check_refs(&agreed, &ledger);
    for (name, id) in agreed {
        tell(&mut ledger, Event::Ref { name, id });
    }
    let held = |content: &Content| 1 + usize::from(content.pulled);
    let roots = ledger.contents.values().map(held).sum::<usize>() + ledger.names.len();
    tell(&mut ledger, Event::Checked { roots, read_back });
    (nodes, ledger)
}

/// Holds one node's contents and pins to the ledger; how many trees were read back.
fn check_node(node: &Node, second: bool, ledger: &Ledger) -> usize {
    let mut socket = node.socket();
    let pins = socket.pins().expect("velod answers");
    let pinned = |id: &str| pins.iter().any(|pin| pin.to_string() == id);
    let name = if second { "second" } else { "first" };
    let mut read_back = 0;
    for (key, content) in ledger.contents.iter().filter(|(_, content)| !second || content.pulled) {
        let what = || format!("content {key}, {}, on the {name} node", content.id);
        let id: ObjectId = content.id.parse().expect("an id");
        let stat = socket.stat_one(id.blob).expect("velod answers");
        assert!(stat.is_some_and(|stat| stat.complete), "LOST: {} is not complete", what());
        assert!(pinned(&content.id) || second && !content.pinned, "LOST: the pin of {}", what());
        if content.fresh {
            check_content(node, name, *key, &content.id);
            read_back += 1;
        }
    }
    for (key, id) in &ledger.removed {
        assert!(!pinned(id), "BACK: content {key}, {id}, was removed and is pinned again");
    }
    node.ok(&["verify"]);
    read_back
}

fn check_refs(found: &BTreeMap<String, String>, ledger: &Ledger) {
    for (name, expected) in &ledger.names {
        let id = found.get(name).map(String::as_str);
        assert!(expected.may_be(id), "LOST: the ref {name} is {id:?}, not {expected:?}");
    }
    let unknown: Vec<_> = found.keys().filter(|name| !ledger.names.contains_key(*name)).collect();
    assert!(unknown.is_empty(), "BACK: nobody set the refs {unknown:?}");
}

fn tell(ledger: &mut Ledger, event: Event) {
    ledger.record(&event);
    say(&event);
}

fn check_content(node: &Node, name: &str, key: u64, id: &str) {
    let dest = place("TMPDIR").join(format!("dest-{name}"));
    node.ok(&["get", id, text(&dest)]);
    assert_same(&content(name, key), &dest);
    fs::remove_dir_all(dest).expect("a directory to remove");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn refs_of(node: &Node) -> BTreeMap<String, String> {
    let found = node.json(&["ref", "ls"]);
    let refs = found["refs"].as_array().expect("a list of refs").iter();
    refs.filter_map(|view| Some((view["name"].as_str()?.to_owned(), view["id"].as_str()?.to_owned())))
        .collect()
}

/// Puts, pulls, names and removes until the power goes.
fn work(seed: u64) {
    let (nodes, ledger) = start_and_check();
    let ledger = Mutex::new(ledger);
    say(&Event::Working);
    std::thread::scope(|scope| {
        scope.spawn(|| put(&nodes, &ledger));
        scope.spawn(|| pull(&nodes, &ledger));
        scope.spawn(|| name(&nodes, &ledger, StdRng::seed_from_u64(seed)));
        scope.spawn(|| remove(&nodes, &ledger));
    });
}

/// One look at or change of the ledger. Events are said under its lock, so that the host hears them in order.
fn with<T>(ledger: &Mutex<Ledger>, act: impl FnOnce(&mut Ledger) -> T) -> T {
    act(&mut ledger.lock().unwrap_or_else(PoisonError::into_inner))
}

fn put(nodes: &Nodes, ledger: &Mutex<Ledger>) {
    loop {
        // What the last life did not finish is put once more: it may find half of itself here.
        let key = with(ledger, |ledger| {
            let key = ledger.unanswered.unwrap_or(ledger.next_key);
            tell(ledger, Event::TryPut { key });
            key
        });
        let source = content("put", key);
        let id = nodes.first.json(&["put", text(&source)])["id"].as_str().expect("an id").to_owned();
        with(ledger, |ledger| tell(ledger, Event::Put { key, id }));
        // Puts leave the pulls behind otherwise, and the removals.
        let behind = |ledger: &mut Ledger| {
            ledger.contents.values().filter(|content| !content.pulled).count() > 1
                || ledger.contents.len() > KEPT
        };
        while with(ledger, behind) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn pull(nodes: &Nodes, ledger: &Mutex<Ledger>) {
    loop {
        let next = with(ledger, |ledger| {
            let mut newest = ledger.contents.iter().rev();
            // What came over is pinned before the next comes.
            let unpinned = newest.clone().find(|(_, content)| content.pulled && !content.pinned);
            let next = unpinned.or_else(|| newest.find(|(_, content)| !content.pulled));
            next.map(|(key, content)| (*key, content.clone()))
        });
        let Some((key, content)) = next else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let gone = |ledger: &Ledger| !ledger.contents.contains_key(&key);
        if !content.pulled {
            with(ledger, |ledger| tell(ledger, Event::TryPull { key }));
            let dest = place("TMPDIR").join("pulled");
            let output = nodes.second.run(&["get", &content.id, text(&dest)]);
            let _ = fs::remove_dir_all(&dest);
            with(ledger, |ledger| {
                if !gone(ledger) {
                    assert!(
                        output.status.success(),
                        "a pull fails: {}",
                        String::from_utf8_lossy(&output.stderr)
                    );
                    tell(ledger, Event::Pulled { key });
                }
            });
        } else {
            let output = nodes.second.run(&["pin", &content.id]);
            with(ledger, |ledger| {
                if !gone(ledger) {
                    assert!(
                        output.status.success(),
                        "a pin fails: {}",
                        String::from_utf8_lossy(&output.stderr)
                    );
                    tell(ledger, Event::Pinned { key });
                }
            });
        }
    }
}

fn name(nodes: &Nodes, ledger: &Mutex<Ledger>, mut random: StdRng) {
    loop {
        std::thread::sleep(Duration::from_millis(30));
        let number = random.random_range(0..NAMES);
        let name = format!("guest/{number}");
        let id = with(ledger, |ledger| {
            let id = ledger.contents.values().nth_back(0).map(|content| content.id.clone())?;
            tell(ledger, Event::TryRef { name: name.clone(), id: id.clone() });
            Some(id)
        });
        let Some(id) = id else { continue };
        // Names are written by the node that made them, here one and there the other, and through either.
        let node = if random.random_bool(0.5) { &nodes.first } else { &nodes.second };
        node.ok(&["ref", "set", &name, &id]);
        with(ledger, |ledger| tell(ledger, Event::Ref { name, id }));
    }
}

fn remove(nodes: &Nodes, ledger: &Mutex<Ledger>) {
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let oldest = with(ledger, |ledger| {
            if let Some((key, id)) = ledger.leaving.iter().next() {
                return Some((*key, id.clone()));
            }
            let (key, content) = ledger.contents.iter().next()?;
            let (key, id) = (*key, content.id.clone());
            (ledger.contents.len() > KEPT).then(|| {
                tell(ledger, Event::TryRemove { key });
                (key, id)
            })
        });
        let Some((key, id)) = oldest else { continue };
        for node in [&nodes.first, &nodes.second] {
            let output = node.run(&["rm", &id]);
            let absent = output.status.code() == Some(3);
            assert!(
                output.status.success() || absent,
                "a removal fails: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        with(ledger, |ledger| tell(ledger, Event::Removed { key }));
    }
}
