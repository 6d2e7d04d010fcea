//! Nodes of golang/groupcache: `tests/go_peer` built with Debian's Go and its packaged library.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use super::client::{Client, PATIENCE};

/// A running Go node; it ends when dropped.
pub struct GoNode {
    child: Child,
    /// Where it answers peers and tests.
    pub address: SocketAddr,
}

impl GoNode {
    /// Starts a node that shares `group` with `peers` and loads from `origin`. `None`, and a line on standard error, where there
    /// is no Go on this machine; with `REQUIRE_GO` set that is a failure.
    pub fn start(address: SocketAddr, peers: &[String], group: &str, origin: &str) -> Option<GoNode> {
        let program = program()?;
        let child = Command::new(program)
            .args(["-self", &format!("http://{address}"), "-peers", &peers.join(",")])
            .args(["-group", group, "-origin", origin])
            .stdin(Stdio::piped())
            .spawn()
            .expect("the Go node can be executed");
        let node = GoNode { child, address };
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the Go node does not listen");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Some(node)
    }

    /// A connection for questions of tests.
    pub async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }
}

impl Drop for GoNode {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Builds the program, once for all tests of this run.
fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go_peer");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/go_peer/main.go"))
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOFLAGS", "")
        .stdin(Stdio::null())
        .output();
    let why = match built {
        Ok(output) if output.status.success() => return Some(program),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    assert!(std::env::var_os("REQUIRE_GO").is_none(), "Go is required: {why}");
    eprintln!("skipped: no Go node (apt-get install golang-go golang-github-golang-groupcache-dev): {why}");
    None
}
