//! The names that services had while all of them were in one package.
//!
//! Members and operators of two versions speak to each other while an upgrade rolls: servers answer to both names, and
//! whoever dials asks under the new one first, and under the former one where that is not known
//! (docs/decisions/0027-packages.md).

use crate::peer;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::{Service, StdError, http};
use tonic::server::NamedService;
use tonic::transport::Channel;

/// A service that had another name.
pub trait Renamed: 'static {
    /// Its name.
    const NOW: &'static str;
    /// The name it had.
    const THEN: &'static str;
}

/// The admin service.
#[derive(Clone, Copy, Debug)]
pub enum Admin {}

impl Renamed for Admin {
    const NOW: &'static str = "synod.admin.v1.Admin";
    const THEN: &'static str = "synod.v1.Admin";
}

/// The three lanes between members.
#[derive(Clone, Copy, Debug)]
pub enum Peer {}

impl Renamed for Peer {
    const NOW: &'static str = "synod.peer.v1.Peer";
    const THEN: &'static str = "synod.v1.Peer";
}

/// Checkpoints between members.
#[derive(Clone, Copy, Debug)]
pub enum PeerCheckpoints {}

impl Renamed for PeerCheckpoints {
    const NOW: &'static str = "synod.peer.v1.PeerCheckpoints";
    const THEN: &'static str = "synod.v1.PeerCheckpoints";
}

/// A client of the checkpoints of a peer of either version.
pub type PeerCheckpointsClient =
    peer::v1::peer_checkpoints_client::PeerCheckpointsClient<Either<PeerCheckpoints>>;

/// A client of the admin service of a member of either version.
pub type AdminClient = crate::admin::v1::admin_client::AdminClient<Either<Admin>>;

/// Puts another service's name into a call's path.
fn rename(uri: &mut http::Uri, from: &str, to: &str) {
    let method = uri.path().strip_prefix('/').and_then(|path| path.strip_prefix(from));
    let Some(method) = method.filter(|method| method.starts_with('/')) else { return };
    let path = format!("/{to}{method}").parse();
    let mut parts = uri.clone().into_parts();
    if let Ok(path) = path {
        parts.path_and_query = Some(path);
        // The rest of it was a URI before.
        *uri = http::Uri::from_parts(parts).unwrap_or_else(|_| uri.clone());
    }
}

/// A service under its former name, for the router that has it under its own.
#[derive(Debug)]
pub struct Formerly<S, N>(S, PhantomData<fn() -> N>);

impl<S, N> Formerly<S, N> {
    /// The same service.
    pub fn new(service: S) -> Self {
        Formerly(service, PhantomData)
    }
}

impl<S: Clone, N> Clone for Formerly<S, N> {
    fn clone(&self) -> Self {
        Formerly(self.0.clone(), PhantomData)
    }
}

impl<S, N: Renamed> NamedService for Formerly<S, N> {
    const NAME: &'static str = N::THEN;
}

impl<S: Service<http::Request<B>>, N: Renamed, B> Service<http::Request<B>> for Formerly<S, N> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> S::Future {
        rename(request.uri_mut(), N::THEN, N::NOW);
        self.0.call(request)
    }
}

/// A channel that calls a service by its own name, or by its former one.
#[derive(Debug)]
pub struct Under<N> {
    channel: Channel,
    is_former: bool,
    service: PhantomData<fn() -> N>,
}

impl<N> Under<N> {
    /// Calls through `channel`.
    pub fn new(channel: Channel, is_former: bool) -> Self {
        Under { channel, is_former, service: PhantomData }
    }
}

impl<N> Clone for Under<N> {
    fn clone(&self) -> Self {
        Under::new(self.channel.clone(), self.is_former)
    }
}

impl<N: Renamed> Service<http::Request<Body>> for Under<N> {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::poll_ready(&mut self.channel, context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if self.is_former {
            rename(request.uri_mut(), N::NOW, N::THEN);
        }
        self.channel.call(request)
    }
}

/// A channel that finds out by which name the other side knows the service. For requests of one small message, which
/// are kept to be sent again.
#[derive(Debug)]
pub struct Either<N> {
    under: Under<N>,
    is_former: Arc<AtomicBool>,
}

impl<N> Either<N> {
    /// Calls through `channel`.
    pub fn new(channel: Channel) -> Self {
        Either { under: Under::new(channel, false), is_former: Arc::default() }
    }
}

impl<N> Clone for Either<N> {
    fn clone(&self) -> Self {
        Either { under: self.under.clone(), is_former: self.is_former.clone() }
    }
}

type Calling = Pin<Box<dyn Future<Output = Result<http::Response<Body>, StdError>> + Send>>;

impl<N: Renamed> Service<http::Request<Body>> for Either<N> {
    type Response = http::Response<Body>;
    type Error = StdError;
    type Future = Calling;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        self.under.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: http::Request<Body>) -> Calling {
        let again = self.under.clone();
        let mut under = std::mem::replace(&mut self.under, again.clone());
        let (mut again, is_former) = (again, self.is_former.clone());
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let request = || http::Request::from_parts(parts.clone(), whole(&body));
            under.is_former = is_former.load(Ordering::Relaxed);
            let answer = under.call(request()).await?;
            if under.is_former || !is_unknown(&answer) {
                return Ok(answer);
            }
            again.is_former = true;
            poll_fn(|context| again.poll_ready(context)).await?;
            let answer = again.call(request()).await?;
            is_former.store(!is_unknown(&answer), Ordering::Relaxed);
            Ok(answer)
        })
    }
}

fn whole(body: &Bytes) -> Body {
    Body::new(Full::new(body.clone()))
}

/// The other side has no such service, or no such method.
fn is_unknown(answer: &http::Response<Body>) -> bool {
    answer.headers().get("grpc-status").is_some_and(|status| status == "12")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_service_is_renamed() {
        let renamed = |uri: &'static str| {
            let mut uri = http::Uri::from_static(uri);
            rename(&mut uri, Peer::THEN, Peer::NOW);
            uri.to_string()
        };
        assert_eq!(renamed("http://a:1/synod.v1.Peer/Control"), "http://a:1/synod.peer.v1.Peer/Control");
        assert_eq!(renamed("/synod.v1.Peer/Data"), "/synod.peer.v1.Peer/Data");
        assert_eq!(renamed("/synod.v1.PeerCheckpoints/Read"), "/synod.v1.PeerCheckpoints/Read");
    }
}
