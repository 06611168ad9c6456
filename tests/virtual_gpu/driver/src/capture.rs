//! Streams in order, stream capture, and graphs.
//!
//! Source of the rules: CUDA Driver API 13.0, "Stream Management" (cuStreamBeginCapture_v2,
//! cuThreadExchangeStreamCaptureMode) and CUDA C++ Programming Guide, "Creating a Graph Using
//! Stream Capture".

use crate::abi::{Code, Result};
use crate::entry::refuse;
use crate::queue::{HostPtr, Place, Ticket, Work};
use crate::state::{Capturing, Recorded, State, StreamKind};
use std::cell::Cell;
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};

pub struct Capture {
    pub context: u64,
    /// The stream that the capture began on and must end on.
    pub origin: u64,
    pub mode: CaptureMode,
    pub thread: ThreadId,
    /// A forbidden call was made: the capture can only be ended, with an error.
    pub is_invalid: bool,
    pub nodes: Vec<Node>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptureMode {
    Global = 0,
    ThreadLocal = 1,
    Relaxed = 2,
}

/// An operation of a graph. Those it waits for come before it in the list.
#[derive(Clone)]
pub struct Node {
    pub handle: u64,
    pub context: u64,
    pub work: Work,
    pub after: Vec<usize>,
}

pub struct Graph {
    pub nodes: Vec<Node>,
}

pub struct GraphExec {
    /// The graph it was made of, whose nodes name its own.
    pub graph: u64,
    pub nodes: Vec<Node>,
    /// A graph does not run beside itself: the end of its last launch.
    pub last: Option<Ticket>,
}

thread_local! {
    static THREAD_MODE: Cell<CaptureMode> = const { Cell::new(CaptureMode::Global) };
}

impl CaptureMode {
    pub fn from_raw(mode: u32) -> Result<CaptureMode> {
        match mode {
            0 => Ok(CaptureMode::Global),
            1 => Ok(CaptureMode::ThreadLocal),
            2 => Ok(CaptureMode::Relaxed),
            _ => Err(Code::INVALID_VALUE),
        }
    }
}

/// Sets the calling thread's mode and returns the former one.
pub fn exchange_thread_mode(mode: CaptureMode) -> CaptureMode {
    THREAD_MODE.replace(mode)
}

impl State {
    /// Adds work to a stream, or to the capture that the stream is part of. Returns the ticket of
    /// what will run.
    ///
    /// Errors: `STREAM_CAPTURE_INVALIDATED`; `STREAM_CAPTURE_IMPLICIT` on the legacy stream while a
    /// stream that it would wait for captures.
    pub fn submit(&mut self, call: &str, stream: u64, work: Work) -> Result<Option<Ticket>> {
        let context = self.streams[&stream].context;
        if let Some(capturing) = self.sound_capture(call, stream)? {
            let node = self.add_node(capturing.capture, context, work, capturing.tail);
            self.set_tail(stream, vec![node]);
            return Ok(None);
        }
        self.refuse_implicit(call, stream)?;
        let after = self.stream_order(stream);
        let device = self.device_of(context);
        let ticket = self.queue.submit(context, device, after, work);
        self.stream_mut(stream).last = Some(ticket);
        Ok(Some(ticket))
    }

    /// Those that the next operation of a stream waits for.
    pub fn stream_order(&self, stream: u64) -> Vec<Ticket> {
        let this = &self.streams[&stream];
        let mut after: Vec<Ticket> = this.last.into_iter().collect();
        match this.kind {
            StreamKind::NonBlocking => {}
            StreamKind::Blocking => {
                let legacy = self.contexts[&this.context].legacy_stream;
                after.extend(self.streams[&legacy].last);
            }
            StreamKind::Legacy => {
                let others = self.streams.values().filter(|other| {
                    other.context == this.context && other.kind == StreamKind::Blocking
                });
                after.extend(others.filter_map(|other| other.last));
            }
        }
        after
    }

    fn stream_mut(&mut self, stream: u64) -> &mut crate::state::Stream {
        self.streams.get_mut(&stream).expect("the caller looked the stream up")
    }

    fn set_tail(&mut self, stream: u64, tail: Vec<usize>) {
        if let Some(capturing) = &mut self.stream_mut(stream).capturing {
            capturing.tail = tail;
        }
    }

    fn add_node(&mut self, capture: u64, context: u64, work: Work, after: Vec<usize>) -> usize {
        let handle = self.new_handle();
        let nodes = &mut self.captures.get_mut(&capture).expect("a live capture").nodes;
        nodes.push(Node { handle, context, work, after });
        nodes.len() - 1
    }

    /// The stream's part in a capture, if that capture is still sound.
    pub fn sound_capture(&self, call: &str, stream: u64) -> Result<Option<Capturing>> {
        let Some(capturing) = &self.streams[&stream].capturing else { return Ok(None) };
        if self.captures[&capturing.capture].is_invalid {
            return refuse(call, Code::STREAM_CAPTURE_INVALIDATED, "the capture was invalidated");
        }
        Ok(Some(capturing.clone()))
    }

    pub fn refuse_implicit(&mut self, call: &str, stream: u64) -> Result<()> {
        let this = &self.streams[&stream];
        if this.kind != StreamKind::Legacy {
            return Ok(());
        }
        let captures: Vec<u64> = self
            .streams
            .values()
            .filter(|other| other.context == this.context && other.kind == StreamKind::Blocking)
            .filter_map(|other| other.capturing.as_ref().map(|capturing| capturing.capture))
            .collect();
        if captures.is_empty() {
            return Ok(());
        }
        self.invalidate(&captures);
        let why = "the legacy stream would wait for a stream that is capturing";
        refuse(call, Code::STREAM_CAPTURE_IMPLICIT, why)
    }

    pub fn invalidate(&mut self, captures: &[u64]) {
        for capture in captures {
            if let Some(capture) = self.captures.get_mut(capture) {
                capture.is_invalid = true;
            }
        }
    }

    /// Refuses a call that is not safe while a capture is going on, by the rules of
    /// `cuThreadExchangeStreamCaptureMode`, and invalidates that capture.
    ///
    /// Errors: `STREAM_CAPTURE_UNSUPPORTED`.
    pub fn refuse_during_capture(&mut self, call: &str) -> Result<()> {
        let mode = THREAD_MODE.get();
        if mode == CaptureMode::Relaxed {
            return Ok(());
        }
        let this_thread = thread::current().id();
        let hindered: Vec<u64> = self
            .captures
            .iter()
            .filter(|(_, capture)| match capture.mode {
                CaptureMode::Relaxed => false,
                CaptureMode::ThreadLocal => capture.thread == this_thread,
                CaptureMode::Global => capture.thread == this_thread || mode == CaptureMode::Global,
            })
            .map(|(handle, _)| *handle)
            .collect();
        if hindered.is_empty() {
            return Ok(());
        }
        self.invalidate(&hindered);
        let why = "not permitted while a stream is capturing";
        refuse(call, Code::STREAM_CAPTURE_UNSUPPORTED, why)
    }

    /// Refuses waiting for a stream that is capturing, in every mode.
    pub fn refuse_capturing(&mut self, call: &str, stream: u64) -> Result<()> {
        let Some(capture) = self.streams[&stream].capturing.as_ref().map(|c| c.capture) else {
            return Ok(());
        };
        self.invalidate(&[capture]);
        refuse(call, Code::STREAM_CAPTURE_UNSUPPORTED, "the stream is capturing")
    }

    /// Notes in an event how far its stream is.
    pub fn record_event(&mut self, call: &str, event: u64, stream: u64) -> Result<()> {
        let recorded = match self.sound_capture(call, stream)? {
            Some(capturing) => {
                Recorded::InCapture { capture: capturing.capture, nodes: capturing.tail }
            }
            None => {
                let at = Arc::new(OnceLock::new());
                let ticket = self.submit(call, stream, Work::RecordEvent(at.clone()))?;
                let ticket = ticket.expect("the stream is not capturing");
                Recorded::InStream { ticket, at }
            }
        };
        self.events.get_mut(&event).ok_or(Code::INVALID_HANDLE)?.recorded = recorded;
        Ok(())
    }

    /// Makes a stream wait for an event; inside a capture this forks and joins.
    ///
    /// Errors: `STREAM_CAPTURE_ISOLATION` for an event of outside, `STREAM_CAPTURE_MERGE` for one
    /// of another capture, `STREAM_CAPTURE_IMPLICIT` if the legacy stream would join a capture.
    pub fn wait_event(&mut self, call: &str, stream: u64, event: u64) -> Result<()> {
        let capturing = self.sound_capture(call, stream)?;
        let recorded = self.events.get(&event).ok_or(Code::INVALID_HANDLE)?.recorded.clone();
        match (capturing, recorded) {
            (_, Recorded::Never) => Ok(()),
            (None, Recorded::InStream { ticket, .. }) => {
                self.refuse_implicit(call, stream)?;
                let mut after = self.stream_order(stream);
                after.push(ticket);
                let context = self.streams[&stream].context;
                let device = self.device_of(context);
                let join = self.queue.submit(context, device, after, Work::Join);
                self.stream_mut(stream).last = Some(join);
                Ok(())
            }
            (Some(capturing), Recorded::InStream { .. }) => {
                self.invalidate(&[capturing.capture]);
                let why = "a capture cannot wait for an event that was recorded outside of it";
                refuse(call, Code::STREAM_CAPTURE_ISOLATION, why)
            }
            (capturing, Recorded::InCapture { capture, nodes }) => {
                self.wait_captured_event(call, stream, capturing, capture, nodes)
            }
        }
    }

    fn wait_captured_event(
        &mut self,
        call: &str,
        stream: u64,
        capturing: Option<Capturing>,
        capture: u64,
        nodes: Vec<usize>,
    ) -> Result<()> {
        let Some(live) = self.captures.get(&capture) else {
            return refuse(call, Code::INVALID_VALUE, "the event's capture has ended");
        };
        if live.is_invalid {
            return refuse(call, Code::STREAM_CAPTURE_INVALIDATED, "the capture was invalidated");
        }
        match capturing {
            Some(Capturing { capture: own, mut tail }) if own == capture => {
                tail.extend(nodes);
                tail.sort_unstable();
                tail.dedup();
                self.set_tail(stream, tail);
                Ok(())
            }
            Some(Capturing { capture: own, .. }) => {
                self.invalidate(&[own, capture]);
                refuse(call, Code::STREAM_CAPTURE_MERGE, "the event is of another capture")
            }
            None if self.streams[&stream].kind == StreamKind::Legacy => {
                self.invalidate(&[capture]);
                let why = "the legacy stream cannot be part of a capture";
                refuse(call, Code::STREAM_CAPTURE_IMPLICIT, why)
            }
            None => {
                self.stream_mut(stream).capturing = Some(Capturing { capture, tail: nodes });
                Ok(())
            }
        }
    }

    /// Errors: `STREAM_CAPTURE_UNSUPPORTED` on the legacy stream, `ILLEGAL_STATE` if it captures
    /// already.
    pub fn begin_capture(&mut self, call: &str, stream: u64, mode: CaptureMode) -> Result<()> {
        let this = &self.streams[&stream];
        if this.kind == StreamKind::Legacy {
            let why = "the legacy stream cannot capture";
            return refuse(call, Code::STREAM_CAPTURE_UNSUPPORTED, why);
        }
        if this.capturing.is_some() {
            return refuse(call, Code::ILLEGAL_STATE, "the stream is capturing already");
        }
        let capture = Capture {
            context: this.context,
            origin: stream,
            mode,
            thread: thread::current().id(),
            is_invalid: false,
            nodes: Vec::new(),
        };
        let handle = self.new_handle();
        self.captures.insert(handle, capture);
        self.stream_mut(stream).capturing = Some(Capturing { capture: handle, tail: Vec::new() });
        Ok(())
    }

    /// Ends a capture and returns its graph.
    ///
    /// Errors: `ILLEGAL_STATE` if there is none; `STREAM_CAPTURE_UNMATCHED` on a stream that it did
    /// not begin on; `STREAM_CAPTURE_WRONG_THREAD`; `STREAM_CAPTURE_INVALIDATED`;
    /// `STREAM_CAPTURE_UNJOINED`.
    pub fn end_capture(&mut self, call: &str, stream: u64) -> Result<u64> {
        let Some(capturing) = self.streams[&stream].capturing.clone() else {
            return refuse(call, Code::ILLEGAL_STATE, "the stream is not capturing");
        };
        let capture = &self.captures[&capturing.capture];
        if capture.origin != stream {
            self.invalidate(&[capturing.capture]);
            let why = "the capture began on another stream";
            return refuse(call, Code::STREAM_CAPTURE_UNMATCHED, why);
        }
        if capture.mode != CaptureMode::Relaxed && capture.thread != thread::current().id() {
            let why = "the capture began on another thread";
            return refuse(call, Code::STREAM_CAPTURE_WRONG_THREAD, why);
        }
        let capture = self.captures.remove(&capturing.capture).expect("looked up above");
        let is_joined = self.release_streams(capturing.capture, &capturing.tail, &capture.nodes);
        if capture.is_invalid {
            return refuse(call, Code::STREAM_CAPTURE_INVALIDATED, "the capture was invalidated");
        }
        if !is_joined {
            let why = "a stream that joined the capture was not waited for by its first stream";
            return refuse(call, Code::STREAM_CAPTURE_UNJOINED, why);
        }
        let graph = self.new_handle();
        self.graphs.insert(graph, Graph { nodes: capture.nodes });
        Ok(graph)
    }

    /// Takes all streams out of a capture. Returns whether the first stream waits for all that they
    /// did.
    fn release_streams(&mut self, capture: u64, tail: &[usize], nodes: &[Node]) -> bool {
        let mut is_before_end = vec![false; nodes.len()];
        for last in tail {
            is_before_end[*last] = true;
        }
        for index in (0..nodes.len()).rev() {
            if is_before_end[index] {
                for before in &nodes[index].after {
                    is_before_end[*before] = true;
                }
            }
        }
        let mut is_joined = true;
        for stream in self.streams.values_mut() {
            if stream.capturing.as_ref().is_some_and(|part| part.capture == capture) {
                let part = stream.capturing.take().expect("looked at above");
                is_joined &= part.tail.iter().all(|node| is_before_end[*node]);
            }
        }
        is_joined
    }

    /// Enqueues all nodes of a graph behind what its stream holds; in a capture, adds them to it.
    pub fn launch_graph(&mut self, call: &str, exec: u64, stream: u64) -> Result<()> {
        let graph = self.graph_execs.get(&exec).ok_or(Code::INVALID_HANDLE)?;
        let nodes = graph.nodes.clone();
        if let Some(capturing) = self.sound_capture(call, stream)? {
            return self.capture_graph(stream, capturing, nodes);
        }
        self.refuse_implicit(call, stream)?;
        let mut before = self.stream_order(stream);
        before.extend(self.graph_execs[&exec].last);
        let mut tickets = Vec::with_capacity(nodes.len());
        let context = self.streams[&stream].context;
        for node in nodes {
            poison_target(&node.work);
            let device = self.device_of(node.context);
            // Every node waits for what came before the launch, a root directly.
            let after: Vec<Ticket> = match node.after.is_empty() {
                true => before.clone(),
                false => node.after.iter().map(|index| tickets[*index]).collect(),
            };
            tickets.push(self.queue.submit(node.context, device, after, node.work));
        }
        before.extend(tickets);
        let device = self.device_of(context);
        let join = self.queue.submit(context, device, before, Work::Join);
        self.stream_mut(stream).last = Some(join);
        self.graph_execs.get_mut(&exec).expect("looked up above").last = Some(join);
        Ok(())
    }

    fn capture_graph(&mut self, stream: u64, capturing: Capturing, nodes: Vec<Node>) -> Result<()> {
        let mut indices = Vec::with_capacity(nodes.len());
        let mut is_last = vec![true; nodes.len()];
        for node in nodes {
            for index in &node.after {
                is_last[*index] = false;
            }
            let after = match node.after.is_empty() {
                true => capturing.tail.clone(),
                false => node.after.iter().map(|index| indices[*index]).collect(),
            };
            indices.push(self.add_node(capturing.capture, node.context, node.work, after));
        }
        let ends = indices.iter().zip(&is_last).filter(|(_, is_last)| **is_last);
        let tail: Vec<usize> = ends.map(|(index, _)| *index).collect();
        if !tail.is_empty() {
            self.set_tail(stream, tail);
        }
        Ok(())
    }
}

/// What a host buffer holds until the copy into it has run.
pub const HOST_POISON: u8 = 0xEE;

/// Makes a read before the copy has run visible.
pub fn poison_target(work: &Work) {
    if let Work::Copy { to: Place::Host(HostPtr(address)), bytes, .. } = work {
        // SAFETY: the program promised that the target is writable from the call on.
        unsafe { address.cast::<u8>().write_bytes(HOST_POISON, *bytes as usize) };
    }
}
