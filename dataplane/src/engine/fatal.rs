//! Threads without which velod moves nothing: a panic in one ends the process, so that whoever supervises it starts it anew.
//!
//! Alive without them it would take sessions and jobs and do nothing about them.

use std::ops::Range;
use std::sync::Arc;

use velo_fabric::{Refusal, Serve, Served, What};
use velo_object::{BlobId, NodeId};

/// Held by such a thread; ends the process where the thread panics. The panic's own message has been printed by then.
pub(super) struct EndsProcess;

impl Drop for EndsProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            tracing::error!(
                thread = thread.name(),
                "velod ends because a thread of it panicked: report this"
            );
            // Not `exit`: what that runs may wait for the threads that are broken.
            std::process::abort();
        }
    }
}

/// What threads of a fabric serve from; a panic in it ends the process, too.
pub(super) struct EndsWith(pub(super) Arc<dyn Serve>);

impl Serve for EndsWith {
    fn serve(&self, peer: NodeId, blob: &BlobId, what: What, range: Range<u64>) -> Result<Served, Refusal> {
        let _end = EndsProcess;
        self.0.serve(peer, blob, what, range)
    }

    fn sent(&self, peer: NodeId, bytes: u64) {
        self.0.sent(peer, bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::EndsProcess;

    const CHILD: &str = "VELOD_TEST_PANIC";

    #[test]
    fn a_panic_ends_the_process_and_a_return_does_not() {
        let run = |name: &str, panics: bool| {
            let guarded = move || {
                let _end = EndsProcess;
                assert!(!panics, "as the test wants it");
            };
            std::thread::Builder::new().name(name.to_owned()).spawn(guarded).expect("a thread").join()
        };
        if std::env::var_os(CHILD).is_some() {
            let _ = run("broken", true);
            // Reached only where the panic ended nothing but its thread.
            return;
        }
        run("sound", false).expect("no panic");
        let mut child = Command::new(std::env::current_exe().expect("this test"));
        child.args(["--exact", "engine::fatal::tests::a_panic_ends_the_process_and_a_return_does_not"]);
        let output = child.env(CHILD, "1").output().expect("run");
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        assert_eq!(signal, Some(6), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
