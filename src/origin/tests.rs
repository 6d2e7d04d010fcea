//! The contract of a source, for the scripted source, an origin over HTTP, and a directory.

use std::collections::HashMap;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Directory, DirectorySettings, HttpOrigin, OriginSettings, OriginUrl};
use crate::source::Source;
use crate::testing::raw_origin::{Origin, Reply};
use crate::testing::{FIRST_BYTES, Gate, Script, Scripted, Stage, source_contract};

#[derive(Default)]
struct ScriptedStage {
    source: Scripted,
    gates: Mutex<HashMap<String, Gate>>,
}

#[async_trait]
impl Stage for ScriptedStage {
    fn source(&self) -> &dyn Source {
        &self.source
    }

    async fn place(&self, target: &str, body: Bytes) {
        self.source.on(target, Script::ok(body));
    }

    async fn place_held(&self, target: &str, body: Bytes) {
        let gate = Gate::new();
        let script = Script::head(200, &[], Some(body.len() as u64)).chunk(body.slice(..FIRST_BYTES));
        self.source.on(target, script.hold(&gate).breaks());
        self.gates.lock().unwrap().insert(target.to_owned(), gate);
    }

    async fn break_held(&self, target: &str) {
        self.gates.lock().unwrap()[target].open();
    }

    async fn abandoned(&self, times: usize) {
        self.source.wait_abandoned(times).await;
    }
}

struct HttpStage {
    server: Origin,
    source: HttpOrigin,
    gates: Mutex<HashMap<String, Gate>>,
    framing: fn(Reply) -> Reply,
}

impl HttpStage {
    async fn new(framing: fn(Reply) -> Reply) -> Self {
        let server = Origin::start().await;
        let url = OriginUrl::parse(&server.url()).unwrap();
        let source = HttpOrigin::new(OriginSettings::new(vec![url])).unwrap();
        HttpStage { server, source, gates: Mutex::default(), framing }
    }
}

#[async_trait]
impl Stage for HttpStage {
    fn source(&self) -> &dyn Source {
        &self.source
    }

    async fn place(&self, target: &str, body: Bytes) {
        self.server.on(target, (self.framing)(Reply::ok(body)));
    }

    async fn place_held(&self, target: &str, body: Bytes) {
        let gate = Gate::new();
        self.server.on(target, Reply::ok(body).hold_after(FIRST_BYTES, &gate).truncate_after(FIRST_BYTES + 1));
        self.gates.lock().unwrap().insert(target.to_owned(), gate);
    }

    async fn break_held(&self, target: &str) {
        self.gates.lock().unwrap()[target].open();
    }

    async fn abandoned(&self, times: usize) {
        // The broken transfer before closed one connection already.
        self.server.closed(1 + times).await;
    }
}

struct DirectoryStage {
    folder: tempfile::TempDir,
    source: Directory,
}

#[async_trait]
impl Stage for DirectoryStage {
    fn source(&self) -> &dyn Source {
        &self.source
    }

    async fn place(&self, target: &str, body: Bytes) {
        std::fs::write(self.folder.path().join(&target[1..]), body).unwrap();
    }

    async fn place_held(&self, target: &str, body: Bytes) {
        self.place(target, body).await;
    }

    async fn break_held(&self, target: &str) {
        let file = std::fs::OpenOptions::new().write(true).open(self.folder.path().join(&target[1..])).unwrap();
        file.set_len(FIRST_BYTES as u64 + 1).unwrap();
    }

    async fn abandoned(&self, _: usize) {}
}

#[tokio::test]
async fn the_scripted_source_keeps_the_contract() {
    source_contract(&ScriptedStage::default()).await;
}

#[tokio::test]
async fn an_origin_over_http_keeps_the_contract() {
    source_contract(&HttpStage::new(|reply| reply).await).await;
    // Announced ends and old servers change nothing that a reader sees.
    source_contract(&HttpStage::new(|reply| reply.header("Connection", "close").close()).await).await;
    source_contract(&HttpStage::new(|reply| reply.http10().close()).await).await;
}

#[tokio::test]
async fn a_directory_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let settings = DirectorySettings { root: folder.path().to_owned(), cache_control: None };
    let source = Directory::new(settings).unwrap();
    source_contract(&DirectoryStage { folder, source }).await;
}
