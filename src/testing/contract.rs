//! The suite that every [`Source`] passes: the same behaviour behind it gives the same answer in front of it.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::timeout;

use super::{get, head, read_all};
use crate::source::{FetchError, Source};

/// A source with somebody behind it who can be told how to behave.
#[async_trait]
pub trait Stage: Send + Sync {
    /// The source under test.
    fn source(&self) -> &dyn Source;

    /// From now on `target` is there with this body. A target that was never placed does not exist.
    async fn place(&self, target: &str, body: Bytes);

    /// As [`Stage::place`], but a transfer gives the first [`FIRST_BYTES`] and then waits, so that a test can act.
    async fn place_held(&self, target: &str, body: Bytes);

    /// Breaks the transfers of a held target.
    async fn break_held(&self, target: &str);

    /// Returns when those behind the source know that so many transfers were given up; at once where nobody can tell.
    async fn abandoned(&self, times: usize);
}

/// What a held transfer gives before it waits, in bytes: as much as any source takes in one piece.
pub const FIRST_BYTES: usize = 64 * 1024;

/// Longest wait for anything in here; only a failing source reaches it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the suite.
pub async fn source_contract(stage: &dyn Stage) {
    timeout(6 * PATIENCE, async {
        whole_bodies(stage).await;
        heads(stage).await;
        absence(stage).await;
        breaks(stage).await;
        cancellation(stage).await;
    })
    .await
    .expect("the suite ends");
}

/// A body arrives whole, of any size, again and again, and as long as declared.
async fn whole_bodies(stage: &dyn Stage) {
    for length in [0, 1, 4096, 200_000] {
        let body = Bytes::from((0..length).map(|index| (index % 251) as u8).collect::<Vec<_>>());
        let target = format!("/whole-{length}");
        stage.place(&target, body.clone()).await;
        for _ in 0..3 {
            let mut fetched = stage.source().fetch(&get(&target, &[])).await.expect("an answer");
            assert_eq!((fetched.status, fetched.content_length), (200, Some(length)), "{target}");
            assert!(!fetched.close_delimited && fetched.hop.is_none());
            assert!(!fetched.fields.contains("content-length") && !fetched.fields.contains("connection"));
            assert_eq!(read_all(&mut fetched).await.expect("a whole body"), body, "{target}");
        }
    }
}

/// `HEAD` says what `GET` would say, without a byte of body.
async fn heads(stage: &dyn Stage) {
    stage.place("/head", Bytes::from_static(b"0123456789")).await;
    let mut fetched = stage.source().fetch(&head("/head")).await.expect("an answer");
    assert_eq!((fetched.status, fetched.content_length), (200, Some(10)));
    assert_eq!(read_all(&mut fetched).await.expect("an end"), b"");
}

/// What is not there is an answer, not a failure.
async fn absence(stage: &dyn Stage) {
    let mut fetched = stage.source().fetch(&get("/absent", &[])).await.expect("an answer");
    assert_eq!(fetched.status, 404);
    read_all(&mut fetched).await.expect("a whole body");
    let fetched = stage.source().fetch(&head("/absent")).await.expect("an answer");
    assert_eq!(fetched.status, 404);
}

/// A body that breaks never ends as if it were whole.
async fn breaks(stage: &dyn Stage) {
    let body = Bytes::from(vec![b'x'; 10 * FIRST_BYTES]);
    stage.place_held("/breaks", body.clone()).await;
    let mut fetched = stage.source().fetch(&get("/breaks", &[])).await.expect("an answer");
    assert_eq!((fetched.status, fetched.content_length), (200, Some(body.len() as u64)));
    fetched.body.chunk().await.expect("bytes before the break").expect("bytes before the break");
    stage.break_held("/breaks").await;
    let error = read_all(&mut fetched).await.expect_err("a break");
    assert!(matches!(error, FetchError::Broken(_)), "{error:?}");
}

/// Dropping the body, or the question before its head, ends the transfer; the source goes on.
async fn cancellation(stage: &dyn Stage) {
    let body = Bytes::from(vec![b'x'; 10 * FIRST_BYTES]);
    stage.place_held("/cancelled", body).await;
    let mut fetched = stage.source().fetch(&get("/cancelled", &[])).await.expect("an answer");
    fetched.body.chunk().await.expect("bytes").expect("bytes");
    drop(fetched);
    timeout(PATIENCE, stage.abandoned(1)).await.expect("the transfer ends");
    // A question that is dropped as soon as it is asked.
    let question = get("/cancelled", &[]);
    let _ = timeout(Duration::ZERO, stage.source().fetch(&question)).await;
    let mut fetched = stage.source().fetch(&head("/cancelled")).await.expect("an answer");
    assert_eq!(read_all(&mut fetched).await.expect("an end"), b"");
}
