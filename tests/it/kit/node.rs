//! The real program as a process: its configuration, its start, its signals and its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use super::client::{self, Client, PATIENCE};
use super::counters;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_groupcache-proxy");

/// A running node. Killed when dropped; what it counted must add up then.
pub struct Node {
    child: Child,
    /// Where clients are answered.
    pub address: SocketAddr,
    /// Where statistics are.
    pub admin: SocketAddr,
    folder: TempDir,
    log: Arc<Mutex<String>>,
    stopped: AtomicBool,
}

/// What a node's configuration says.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where it listens; port 0 lets the system choose.
    pub address: SocketAddr,
    /// Keys of the first level besides `listen`, `admin`, `log` and `groups`, as YAML.
    pub more: String,
    /// The list of groups, as YAML.
    pub groups: String,
    /// Keys of `admin` besides the address.
    pub admin: String,
    /// Variables of the environment.
    pub environment: Vec<(&'static str, String)>,
}

impl Setup {
    /// One group `all` with this source (`origin: URL` or `directory: PATH`) and further keys.
    pub fn group(keys: &str) -> Setup {
        Setup::groups(&format!("[{{ name: all, match: {{ path: / }}, {keys} }}]"))
    }

    /// These groups.
    pub fn groups(groups: &str) -> Setup {
        Setup {
            address: LOOPBACK,
            // A test that ends a node does not want to wait; what waits says so.
            more: "shutdown: { delay: 0s, timeout: 20s }\nthreads: 2\nmemory: 64MiB\n".to_owned(),
            groups: groups.to_owned(),
            admin: String::new(),
            environment: Vec::new(),
        }
    }

    /// With other keys of the first level.
    pub fn more(self, more: &str) -> Setup {
        Setup { more: format!("{more}\n"), ..self }
    }

    fn yaml(&self, admin: SocketAddr) -> String {
        format!(
            "listen: [{{ address: '{}' }}]\nadmin: {{ address: '{admin}', {} }}\nlog: {{ format: json, access: none }}\n{}groups: {}\n",
            self.address, self.admin, self.more, self.groups
        )
    }

    /// Starts a node and waits until it is ready.
    pub fn start(&self) -> Node {
        let node = self.spawn();
        node.wait_until_ready();
        node
    }

    /// Starts a node and waits until it listens.
    pub fn spawn(&self) -> Node {
        let folder = TempDir::new().expect("a temporary folder");
        std::fs::write(folder.path().join("proxy.yaml"), self.yaml(LOOPBACK)).expect("writing the configuration");
        Node::run(folder, &self.environment, &["run", "--config", "proxy.yaml"])
    }
}

impl Node {
    /// Starts the program with these arguments in `folder` and waits until it listens.
    pub fn run(folder: TempDir, environment: &[(&str, String)], arguments: &[&str]) -> Node {
        let mut child = command(folder.path(), arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be executed");
        let mut lines = BufReader::new(child.stderr.take().expect("standard error"));
        let mut log = String::new();
        let (mut clients, mut admin) = (None, None);
        while clients.is_none() || admin.is_none() {
            let start = log.len();
            let read = lines.read_line(&mut log).expect("reading standard error");
            assert!(read > 0, "the node ended: {log}");
            let Some((url, answers)) = listening(&log[start..]) else { continue };
            let address: SocketAddr = url.rsplit('/').next().and_then(|text| text.parse().ok()).expect("an address");
            if answers.contains("clients") {
                clients = clients.or(Some(address));
            }
            if answers.contains("admin") {
                admin = Some(address);
            }
        }
        let log = Arc::new(Mutex::new(log));
        let shared = log.clone();
        std::thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
                shared.lock().expect("the log").push_str(&line);
                line.clear();
            }
        });
        let (address, admin) = (clients.expect("an address"), admin.expect("an address"));
        Node { child, address, admin, folder, log, stopped: AtomicBool::new(false) }
    }

    /// The only place that asks again and again: whether the node is ready.
    pub fn wait_until_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        while ask_ready(self.address) != Some(200) {
            assert!(Instant::now() < deadline, "the node does not become ready: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the node has spoken with all of its peers.
    pub async fn wait_until_connected(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stats = self.stats().await;
            let peers = stats["fleet"]["peers"].as_array().expect("peers");
            if peers.iter().all(|peer| peer["state"] == "up" && peer["ring_id"].is_string()) {
                return;
            }
            assert!(Instant::now() < deadline, "the fleet does not become whole: {peers:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until `ready` says that the node is not.
    pub fn wait_until_not_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        while ask_ready(self.address) != Some(503) {
            assert!(Instant::now() < deadline, "the node stays ready: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `http://ADDRESS` of clients.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `http://ADDRESS` of the administration.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin)
    }

    /// A client's connection.
    pub async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    /// One question on a connection of its own.
    pub async fn get(&self, target: &str) -> client::Answer {
        client::get(self.address, target).await
    }

    /// The statistics.
    pub async fn stats(&self) -> Value {
        client::get(self.admin, "/_groupcache/stats").await.json()
    }

    /// The statistics of one group.
    pub async fn group(&self, name: &str) -> Value {
        self.stats().await["groups"][name].take()
    }

    /// Writes the configuration anew, with these groups and keys; the addresses stay.
    pub fn rewrite(&self, setup: &Setup) {
        let setup = Setup { address: self.address, ..setup.clone() };
        self.rewrite_text(&setup.yaml(self.admin));
    }

    /// Writes this text as configuration.
    pub fn rewrite_text(&self, text: &str) {
        let aside = self.folder.path().join("proxy.yaml.new");
        std::fs::write(&aside, text).expect("writing the configuration");
        std::fs::rename(aside, self.folder.path().join("proxy.yaml")).expect("moving the configuration");
    }

    /// Waits until the log holds this text.
    pub fn wait_for_log(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "the log has no {text:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the node wrote to standard error.
    pub fn log(&self) -> String {
        self.log.lock().expect("the log").clone()
    }

    /// Its number among the processes.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal: `TERM`, `HUP`, `STOP` and so on.
    pub fn signal(&self, name: &str) {
        match name {
            "STOP" => self.stopped.store(true, Ordering::Relaxed),
            "CONT" => self.stopped.store(false, Ordering::Relaxed),
            _ => {}
        }
        signal(self.child.id(), name);
        if name == "STOP" {
            self.wait_until_stopped();
        }
    }

    /// The kernel stops a process when the thread that it tells gets its turn: until then the other threads go on, and may
    /// answer what is asked after the signal.
    fn wait_until_stopped(&self) {
        let is_stopped = |stat: &str| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("its threads");
            let mut states =
                threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
            if states.all(|stat| is_stopped(&stat)) {
                return;
            }
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What does not add up in the statistics of this node, if it lives, has nothing to do, and tells. What was written last
    /// may be counted a moment later.
    fn contradictions(&mut self) -> Vec<String> {
        // A group that answers from something else after a reload keeps its counters, and begins with an empty store.
        if self.log().contains("entries dropped") {
            return Vec::new();
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let alive = matches!(self.child.try_wait(), Ok(None)) && !self.stopped.load(Ordering::Relaxed);
            let stats = if alive { counters::ask(self.admin) } else { None };
            let Some(stats) = stats.filter(counters::is_idle) else { return Vec::new() };
            let contradictions = counters::contradictions(&stats);
            if contradictions.is_empty() || Instant::now() > deadline {
                return contradictions;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills the node at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the end of the process.
    pub async fn ended(&mut self) -> ExitStatus {
        end_of(&mut self.child).await
    }

    /// The folder of the configuration.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let contradictions = if std::thread::panicking() { Vec::new() } else { self.contradictions() };
        self.kill();
        if std::thread::panicking() {
            eprintln!("log of the node on {}:\n{}", self.address, self.log());
        }
        assert!(contradictions.is_empty(), "the counters of {} do not add up: {contradictions:#?}", self.address);
    }
}

/// Waits for the end of a process; one that does not end is killed.
pub async fn end_of(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("the state of the process") {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("the process does not end");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs a command of the program to its end.
pub fn run(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).stdin(Stdio::null()).output().expect("the program can be executed")
}

/// The program with these arguments and an environment without ours.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).current_dir(folder);
    for name in ["GROUPCACHE_URL", "GROUPCACHE_ADMIN_TOKEN", "GROUPCACHE_READ_TOKEN", "GROUPCACHE_FLEET_SECRET"] {
        command.env_remove(name);
    }
    command
}

/// Sends a signal to one process.
pub fn signal(process: u32, name: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).status();
    assert!(status.expect("a shell").success(), "kill -{name} {process}");
}

/// Addresses on loopback that are free now. Between this and their use another program may take one: tests that need
/// addresses before the nodes start try again with others then.
pub fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind(LOOPBACK).expect("a free port")).collect();
    held.iter().map(|listener| listener.local_addr().expect("an address")).collect()
}

/// Any port of loopback.
pub const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// URL and roles of a line of the log that tells of a listener.
fn listening(line: &str) -> Option<(String, String)> {
    let line: Value = serde_json::from_str(line).ok()?;
    (line["message"] == "listening")
        .then(|| (line["url"].as_str().unwrap_or_default().into(), line["answers"].as_str().unwrap_or_default().into()))
}

fn ask_ready(address: SocketAddr) -> Option<u16> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(b"GET /_groupcache/ready HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}
