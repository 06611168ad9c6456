//! Graphs: made by capture, instantiated, launched, updated.

use crate::abi::{Code, KernelNodeParams};
use crate::capture::{GraphExec, Node};
use crate::entry::{driver_api, put, put_if_asked, refuse};
use crate::helper;
use crate::launch::Geometry;
use crate::queue::Work;
use crate::state::{Driver, current};
use std::ffi::{c_uint, c_ulonglong};
use std::sync::Arc;

/// Free on launch, upload, node priority: without effect here. Launch from the device is not built.
const FLAGS_KNOWN: c_ulonglong = 1 | 2 | 8;

driver_api! {
    fn cuGraphInstantiateWithFlags(exec: *mut u64, graph: u64, flags: c_ulonglong) {
        let (_driver, mut state, _context) = current()?;
        if flags & !FLAGS_KNOWN != 0 {
            let why = "a flag that is unknown, or launch from the device";
            return refuse("cuGraphInstantiate", Code::INVALID_VALUE, why);
        }
        let nodes = state.graphs.get(&graph).ok_or(Code::INVALID_VALUE)?.nodes.clone();
        let handle = state.new_handle();
        state.graph_execs.insert(handle, GraphExec { graph, nodes, last: None });
        put(exec, handle)
    }

    /// Enqueues the graph's operations, in its order.
    fn cuGraphLaunch(exec: u64, stream: u64) {
        let (driver, mut state, context) = current()?;
        let stream = state.stream(stream, context)?;
        state.launch_graph("cuGraphLaunch", exec, stream)?;
        let nodes = &state.graph_execs[&exec].nodes;
        let has_host_function =
            nodes.iter().any(|node| matches!(node.work, Work::HostFunction { .. }));
        if let (true, Some(last)) = (has_host_function, state.graph_execs[&exec].last) {
            helper::run_soon(driver, context, last);
        }
        let device = state.device_of(context);
        driver.limit_queue(device, state);
        Ok(())
    }

    /// Nothing to prepare.
    fn cuGraphUpload(exec: u64, stream: u64) {
        let (_driver, mut state, context) = current()?;
        state.stream(stream, context)?;
        state.graph_execs.get(&exec).ok_or(Code::INVALID_HANDLE)?;
        Ok(())
    }

    fn cuGraphDestroy(graph: u64) {
        let mut state = Driver::get()?.lock();
        state.graphs.remove(&graph).ok_or(Code::INVALID_VALUE)?;
        Ok(())
    }

    /// What was launched still runs.
    fn cuGraphExecDestroy(exec: u64) {
        let mut state = Driver::get()?.lock();
        state.graph_execs.remove(&exec).ok_or(Code::INVALID_VALUE)?;
        Ok(())
    }

    /// The nodes in a topological order; with `nodes` null only their number.
    fn cuGraphGetNodes(graph: u64, nodes: *mut u64, num_nodes: *mut usize) {
        let state = Driver::get()?.lock();
        let graph = state.graphs.get(&graph).ok_or(Code::INVALID_VALUE)?;
        if num_nodes.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        if nodes.is_null() {
            return put(num_nodes, graph.nodes.len());
        }
        let room = *num_nodes;
        for index in 0..room {
            let handle = graph.nodes.get(index).map_or(0, |node| node.handle);
            put(nodes.add(index), handle)?;
        }
        put(num_nodes, graph.nodes.len().min(room))
    }

    fn cuGraphNodeGetType(node: u64, kind: *mut c_uint) {
        let state = Driver::get()?.lock();
        let mut nodes = state.graphs.values().flat_map(|graph| &graph.nodes);
        let node = nodes.find(|other| other.handle == node).ok_or(Code::INVALID_VALUE)?;
        put(kind, kind_of(&node.work))
    }

    /// Gives a kernel node of an instantiated graph other parameters; the next launch uses them.
    fn cuGraphExecKernelNodeSetParams_v2(exec: u64, node: u64, params: *const KernelNodeParams) {
        let (_driver, mut state, _context) = current()?;
        if params.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let params = &*params;
        let call = "cuGraphExecKernelNodeSetParams";
        let geometry = Geometry {
            grid: params.grid,
            block: params.block,
            shared_bytes: params.shared_bytes,
        };
        let launch =
            state.new_launch(call, params.function, &geometry, params.params, params.extra)?;
        let exec = state.graph_execs.get_mut(&exec).ok_or(Code::INVALID_HANDLE)?;
        let node = exec.nodes.iter_mut().find(|other| other.handle == node);
        let node = node.ok_or(Code::INVALID_VALUE)?;
        if !matches!(node.work, Work::Kernel(_)) {
            return refuse(call, Code::INVALID_VALUE, "the node is no kernel");
        }
        node.work = Work::Kernel(Arc::new(launch));
        Ok(())
    }

    /// Takes over parameters, addresses and functions of a graph of the same shape.
    fn cuGraphExecUpdate_v2(exec: u64, graph: u64, result: *mut UpdateResult) {
        let (_driver, mut state, _context) = current()?;
        let nodes = state.graphs.get(&graph).ok_or(Code::INVALID_VALUE)?.nodes.clone();
        let exec = state.graph_execs.get_mut(&exec).ok_or(Code::INVALID_HANDLE)?;
        if let Err(outcome) = check_same_shape(&exec.nodes, &nodes) {
            put_if_asked(result, outcome);
            let why = "the graphs differ in more than parameters";
            return refuse("cuGraphExecUpdate", Code::GRAPH_EXEC_UPDATE_FAILURE, why);
        }
        for (mine, theirs) in exec.nodes.iter_mut().zip(nodes) {
            // The nodes keep the names they were instantiated with.
            mine.work = theirs.work;
        }
        put_if_asked(result, UpdateResult { result: 0, node: 0, from_node: 0 });
        Ok(())
    }
}

/// `CUgraphExecUpdateResultInfo`.
#[repr(C)]
pub struct UpdateResult {
    pub result: c_uint,
    pub node: u64,
    pub from_node: u64,
}

const UPDATE_TOPOLOGY_CHANGED: c_uint = 2;
const UPDATE_NODE_TYPE_CHANGED: c_uint = 3;

fn check_same_shape(mine: &[Node], theirs: &[Node]) -> std::result::Result<(), UpdateResult> {
    if mine.len() != theirs.len() {
        return Err(UpdateResult { result: UPDATE_TOPOLOGY_CHANGED, node: 0, from_node: 0 });
    }
    for (mine, theirs) in mine.iter().zip(theirs) {
        let result = match mine {
            _ if mine.after != theirs.after => UPDATE_TOPOLOGY_CHANGED,
            _ if kind_of(&mine.work) != kind_of(&theirs.work) => UPDATE_NODE_TYPE_CHANGED,
            _ => continue,
        };
        return Err(UpdateResult { result, node: theirs.handle, from_node: mine.handle });
    }
    Ok(())
}

/// A `CUgraphNodeType`.
fn kind_of(work: &Work) -> c_uint {
    match work {
        Work::Kernel(_) | Work::External(_) => 0,
        Work::Copy { .. } => 1,
        Work::Set { .. } => 2,
        Work::HostFunction { .. } => 3,
        Work::Join | Work::RecordEvent(_) => 5,
        Work::Free(_) => 11,
    }
}
