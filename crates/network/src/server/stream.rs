//! A connection's bytes, watched: headers must come in time, and answers must be taken at a least speed.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::{Limits, pace::Patience};

const HEAD: u8 = 0;
const BUSY: u8 = 1;
const IDLE: u8 = 2;

/// Where a connection stands: a request's headers are coming, a request is in progress, or neither.
#[derive(Clone, Debug, Default)]
pub(super) struct Phase(Arc<AtomicU8>);

impl Phase {
    pub(super) fn begin_request(&self) {
        self.0.store(BUSY, Ordering::Relaxed);
    }

    pub(super) fn end_request(&self) {
        self.0.store(IDLE, Ordering::Relaxed);
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A stream that fails with `TimedOut` when the other end takes too long.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    phase: Phase,
    header_timeout: Duration,
    /// When the headers that are coming must be here.
    headers_end: Option<Pin<Box<Sleep>>>,
    writing: Patience,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, phase: Phase, limits: &Limits) -> Self {
        Self {
            stream,
            phase,
            header_timeout: limits.header_timeout,
            headers_end: None,
            writing: Patience::new(limits.pace()),
        }
    }

    fn note_written(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(written) => {
                self.writing.progressed(*written.as_ref().unwrap_or(&0));
                Poll::Ready(written)
            }
            Poll::Pending => {
                let slow = ready!(self.writing.poll_end(context));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, slow)))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        let phase = this.phase.get();
        if phase == BUSY {
            this.headers_end = None;
            return read;
        }
        // Between requests hyper's own timer runs, which is longer.
        let has_begun = phase == HEAD || buffer.filled().len() > before;
        if has_begun && this.headers_end.is_none() {
            this.phase.0.store(HEAD, Ordering::Relaxed);
            let end = Instant::now() + this.header_timeout;
            this.headers_end = Some(Box::pin(tokio::time::sleep_until(end)));
        }
        if read.is_pending()
            && let Some(end) = &mut this.headers_end
        {
            ready!(end.as_mut().poll(context));
            let error = "the headers of a request did not come in time";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, error)));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note_written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.note_written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
