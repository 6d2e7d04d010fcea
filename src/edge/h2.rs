//! HTTP/2 stub
use std::sync::Arc;
use async_trait::async_trait;
use pingora::apps::{HttpServerApp, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use super::Edge;
use super::pass::Pass;
/// stub
pub struct Http2 { proxy: Arc<HttpProxy<Pass>> }
impl Http2 {
    /// stub
    pub fn new(_edge: Arc<Edge>, proxy: Arc<HttpProxy<Pass>>) -> Self { Http2 { proxy } }
}
#[async_trait]
impl HttpServerApp for Http2 {
    async fn process_new_http(self: &Arc<Self>, session: ServerSession, shutdown: &ShutdownWatch) -> Option<ReusedHttpStream> {
        self.proxy.process_new_http(session, shutdown).await
    }
}
