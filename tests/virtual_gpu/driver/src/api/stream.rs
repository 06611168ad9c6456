//! Streams and their capture.

use crate::abi::{Code, Result};
use crate::capture::{CaptureMode, exchange_thread_mode};
use crate::entry::{driver_api, put, put_if_asked, refuse};
use crate::state::{State, StreamKind, current};
use std::ffi::{c_int, c_uint, c_void};

driver_api! {
    fn cuStreamCreate(stream: *mut u64, flags: c_uint) {
        create(stream, flags, 0)
    }

    fn cuStreamCreateWithPriority(stream: *mut u64, flags: c_uint, priority: c_int) {
        create(stream, flags, priority.clamp(-5, 0))
    }

    /// What was enqueued still runs.
    fn cuStreamDestroy_v2(stream: u64) {
        let (_driver, mut state, _context) = current()?;
        let is_own = state.streams.get(&stream).is_some_and(|s| s.kind != StreamKind::Legacy);
        if !is_own {
            return refuse("cuStreamDestroy", Code::INVALID_HANDLE, "no such stream");
        }
        let removed = state.streams.remove(&stream).ok_or(Code::INVALID_HANDLE)?;
        if let Some(capturing) = removed.capturing {
            state.invalidate(&[capturing.capture]);
        }
        Ok(())
    }

    /// Runs all work of the stream, and what that waits for.
    fn cuStreamSynchronize(stream: u64) {
        let (driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        state.refuse_capturing("cuStreamSynchronize", stream)?;
        state.refuse_during_capture("cuStreamSynchronize")?;
        let last = state.last_of(stream);
        for ticket in last {
            state = driver.wait_for(context, state, Some(ticket))?;
        }
        Ok(())
    }

    /// Runs one operation, so that a program that only asks gets on, and then says whether all have
    /// run.
    fn cuStreamQuery(stream: u64) {
        let (driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        state.refuse_capturing("cuStreamQuery", stream)?;
        state.refuse_during_capture("cuStreamQuery")?;
        let last = state.last_of(stream);
        let is_pending = |state: &State| last.iter().any(|t| state.queue.is_pending(*t));
        if is_pending(&state) {
            let device = state.device_of(context);
            state = driver.run_one(device, state);
        }
        state.check_context(context)?;
        if is_pending(&state) { Err(Code::NOT_READY) } else { Ok(()) }
    }

    fn cuStreamWaitEvent(stream: u64, event: u64, _flags: c_uint) {
        let (_driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        state.wait_event("cuStreamWaitEvent", stream, event)
    }

    fn cuStreamGetFlags(stream: u64, flags: *mut c_uint) {
        let (_driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        put(flags, c_uint::from(state.streams[&stream].kind == StreamKind::NonBlocking))
    }

    fn cuStreamGetPriority(stream: u64, priority: *mut c_int) {
        let (_driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        put(priority, state.streams[&stream].priority)
    }

    fn cuStreamGetCtx(stream: u64, out: *mut u64) {
        let (_driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        put(out, state.streams[&stream].context)
    }

    fn cuStreamGetId(stream: u64, id: *mut u64) {
        let (_driver, mut state, context) = current()?;
        put(id, state.stream(stream, context)?)
    }

    fn cuStreamBeginCapture_v2(stream: u64, mode: c_uint) {
        let (_driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        let mode = CaptureMode::from_raw(mode)?;
        state.begin_capture("cuStreamBeginCapture", stream, mode)
    }

    /// The graph is 0 if the capture failed.
    fn cuStreamEndCapture(stream: u64, graph: *mut u64) {
        let (_driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        put(graph, 0)?;
        let captured = state.end_capture("cuStreamEndCapture", stream)?;
        put(graph, captured)
    }

    fn cuStreamIsCapturing(stream: u64, status: *mut c_uint) {
        let (_driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        put(status, state.capture_status(stream).0)
    }

    fn cuStreamGetCaptureInfo(stream: u64, status: *mut c_uint, id: *mut u64) {
        let (_driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        let (now, capture) = state.capture_status(stream);
        put_if_asked(id, capture);
        put(status, now)
    }

    /// Status and id; the graph under construction cannot be had.
    fn cuStreamGetCaptureInfo_v2(
        stream: u64,
        status: *mut c_uint,
        id: *mut u64,
        graph: *mut u64,
        after: *mut *const c_void,
        num_after: *mut usize,
    ) {
        capture_info(stream, status, id, &[graph.cast(), after.cast(), num_after.cast()])
    }

    /// As `cuStreamGetCaptureInfo_v2`.
    fn cuStreamGetCaptureInfo_v3(
        stream: u64,
        status: *mut c_uint,
        id: *mut u64,
        graph: *mut u64,
        after: *mut *const c_void,
        edges: *mut *const c_void,
        num_after: *mut usize,
    ) {
        let asked = [graph.cast(), after.cast(), edges.cast(), num_after.cast()];
        capture_info(stream, status, id, &asked)
    }

    /// Swaps the calling thread's capture mode with the one given.
    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) {
        if mode.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let former = exchange_thread_mode(CaptureMode::from_raw(*mode)?);
        put(mode, former as c_uint)
    }
}

/// # Safety
/// As `put`.
unsafe fn create(out: *mut u64, flags: c_uint, priority: c_int) -> Result<()> {
    let (_driver, mut state, context) = current()?;
    let kind = match flags {
        0 => StreamKind::Blocking,
        1 => StreamKind::NonBlocking,
        _ => return Err(Code::INVALID_VALUE),
    };
    let stream = state.new_stream(context, kind, priority);
    // SAFETY: as the caller promised.
    unsafe { put(out, stream) }
}

/// # Safety
/// As `put`; what was `asked` for more is null or has room for 8 bytes.
unsafe fn capture_info(
    stream: u64,
    status: *mut c_uint,
    id: *mut u64,
    asked: &[*mut u64],
) -> Result<()> {
    let (_driver, mut state, context) = current()?;
    let stream = state.stream(stream, context)?;
    let (now, capture) = state.capture_status(stream);
    let is_asked = asked.iter().any(|out| !out.is_null());
    if now == STATUS_ACTIVE && is_asked {
        let why = "the graph of a capture in progress cannot be had";
        return refuse("cuStreamGetCaptureInfo", Code::NOT_SUPPORTED, why);
    }
    for out in asked {
        // SAFETY: as the caller promised.
        unsafe { put_if_asked(*out, 0) };
    }
    // SAFETY: as the caller promised.
    unsafe {
        put_if_asked(id, capture);
        put(status, now)
    }
}

const STATUS_NONE: c_uint = 0;
const STATUS_ACTIVE: c_uint = 1;
const STATUS_INVALIDATED: c_uint = 2;

impl State {
    fn capture_status(&self, stream: u64) -> (c_uint, u64) {
        match &self.streams[&stream].capturing {
            None => (STATUS_NONE, 0),
            Some(part) if self.captures[&part.capture].is_invalid => {
                (STATUS_INVALIDATED, part.capture)
            }
            Some(part) => (STATUS_ACTIVE, part.capture),
        }
    }

    /// What must have run before a stream counts as idle. The legacy stream waits for the blocking
    /// ones.
    fn last_of(&self, stream: u64) -> Vec<u64> {
        match self.streams[&stream].kind {
            StreamKind::Legacy => self.stream_order(stream),
            _ => self.streams[&stream].last.into_iter().collect(),
        }
    }
}
