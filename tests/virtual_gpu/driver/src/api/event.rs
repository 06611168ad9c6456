//! Events.

use crate::abi::{Code, Result};
use crate::entry::{driver_api, put, refuse};
use crate::queue::Ticket;
use crate::state::{Event, Recorded, State, current};
use std::ffi::c_uint;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

const FLAG_DISABLE_TIMING: c_uint = 2;
const FLAG_INTERPROCESS: c_uint = 4;
/// A question about an event runs at most 2 to this power operations.
const DOUBLINGS_MAX: u32 = 10;

driver_api! {
    fn cuEventCreate(event: *mut u64, flags: c_uint) {
        let (_driver, mut state, context) = current()?;
        if flags & FLAG_INTERPROCESS != 0 {
            let why = "events between processes are not built";
            return refuse("cuEventCreate", Code::NOT_SUPPORTED, why);
        }
        let handle = state.new_handle();
        let timing = flags & FLAG_DISABLE_TIMING == 0;
        let fresh = Event { context, timing, recorded: Recorded::Never, num_queries: 0 };
        state.events.insert(handle, fresh);
        put(event, handle)
    }

    fn cuEventDestroy_v2(event: u64) {
        let (_driver, mut state, _context) = current()?;
        state.events.remove(&event).ok_or(Code::INVALID_HANDLE)?;
        Ok(())
    }

    fn cuEventRecord(event: u64, stream: u64) {
        record("cuEventRecord", event, stream)
    }

    fn cuEventRecordWithFlags(event: u64, stream: u64, flags: c_uint) {
        if flags != 0 {
            let why = "external event nodes are not built";
            return refuse("cuEventRecordWithFlags", Code::NOT_SUPPORTED, why);
        }
        record("cuEventRecordWithFlags", event, stream)
    }

    /// Says whether the event has happened; one that was never recorded has. So that a program that
    /// only asks gets on, each question runs work: one operation, then two, four and so on.
    fn cuEventQuery(event: u64) {
        let (driver, mut state, context) = current()?;
        let Some((ticket, _)) = state.outside_capture("cuEventQuery", event)? else {
            return Ok(());
        };
        let device = state.device_of(context);
        let asked = state.events.get_mut(&event).ok_or(Code::INVALID_HANDLE)?;
        asked.num_queries += 1;
        for _ in 0..1u32 << (asked.num_queries - 1).min(DOUBLINGS_MAX) {
            if !state.queue.is_pending(ticket) {
                break;
            }
            state = driver.run_one(device, state);
        }
        state.check_context(context)?;
        if state.queue.is_pending(ticket) { Err(Code::NOT_READY) } else { Ok(()) }
    }

    /// Runs work until the event has happened.
    fn cuEventSynchronize(event: u64) {
        let (driver, mut state, context) = current()?;
        let recorded = state.outside_capture("cuEventSynchronize", event)?;
        drop(driver.wait_for(context, state, recorded.map(|(ticket, _)| ticket))?);
        Ok(())
    }

    fn cuEventElapsedTime(ms: *mut f32, start: u64, end: u64) {
        elapsed(ms, start, end)
    }

    fn cuEventElapsedTime_v2(ms: *mut f32, start: u64, end: u64) {
        elapsed(ms, start, end)
    }
}

fn record(call: &str, event: u64, stream: u64) -> Result<()> {
    let (_driver, mut state, context) = current()?;
    let stream = state.stream(stream, context)?;
    let owner = state.events.get(&event).ok_or(Code::INVALID_HANDLE)?.context;
    if owner != state.streams[&stream].context {
        return refuse(call, Code::INVALID_HANDLE, "event and stream are of two contexts");
    }
    state.record_event(call, event, stream)
}

/// The time between two events, of this process's clock: it says nothing of a GPU.
///
/// # Safety
/// As `put`.
unsafe fn elapsed(ms: *mut f32, start: u64, end: u64) -> Result<()> {
    let (_driver, state, _context) = current()?;
    let time_of = |event: u64| {
        let event = state.events.get(&event).ok_or(Code::INVALID_HANDLE)?;
        match &event.recorded {
            Recorded::InStream { at, .. } if event.timing => at.get().ok_or(Code::NOT_READY),
            _ => Err(Code::INVALID_HANDLE),
        }
    };
    let (start, end) = (*time_of(start)?, *time_of(end)?);
    let passed = match end.checked_duration_since(start) {
        Some(passed) => passed.as_secs_f32(),
        None => -start.duration_since(end).as_secs_f32(),
    };
    // SAFETY: as the caller promised.
    unsafe { put(ms, passed * 1e3) }
}

impl State {
    /// Where an event was recorded, for calls that ask the host's side of it.
    ///
    /// Errors: `CAPTURED_EVENT` if that was in a capture; `STREAM_CAPTURE_UNSUPPORTED` during one.
    fn outside_capture(
        &mut self,
        call: &str,
        event: u64,
    ) -> Result<Option<(Ticket, Arc<OnceLock<Instant>>)>> {
        let recorded = self.events.get(&event).ok_or(Code::INVALID_HANDLE)?.recorded.clone();
        if let Recorded::InCapture { capture, .. } = recorded {
            self.invalidate(&[capture]);
            return refuse(call, Code::CAPTURED_EVENT, "the event was recorded in a capture");
        }
        self.refuse_during_capture(call)?;
        Ok(match recorded {
            Recorded::InStream { ticket, at } => Some((ticket, at)),
            _ => None,
        })
    }
}
