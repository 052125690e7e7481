//! Bodies: a request's, held to a least speed, and an answer's, whose end makes the connection idle.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{
    BoxError,
    pace::{Pace, Patience},
    stream::Phase,
};

/// A request's body that ends with [`super::TooSlow`] when its bytes come too slowly.
#[derive(Debug)]
pub struct Paced<B> {
    inner: B,
    patience: Patience,
}

impl<B> Paced<B> {
    pub(super) fn new(inner: B, pace: Pace) -> Self {
        Self {
            inner,
            patience: Patience::new(pace),
        }
    }
}

impl<B> Body for Paced<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(frame) => {
                let frame = frame.map(|it| it.map_err(Into::into));
                let data = frame.as_ref().and_then(|it| it.as_ref().ok()?.data_ref());
                let bytes = data.map_or(0, Bytes::len);
                self.patience.progressed(bytes);
                Poll::Ready(frame)
            }
            Poll::Pending => self
                .patience
                .poll_end(context)
                .map(|slow| Some(Err(slow.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer's body; when it is gone, the connection waits for its next request.
pub(super) struct Answer<B> {
    inner: B,
    phase: Phase,
}

impl<B> Answer<B> {
    pub(super) fn new(inner: B, phase: Phase) -> Self {
        Self { inner, phase }
    }
}

impl<B> Drop for Answer<B> {
    fn drop(&mut self) {
        self.phase.end_request();
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
