//! PTX text -> decoded kernels: `lexer` makes tokens, `parse` makes statements, `live` says
//! which registers may share a place, `decode` makes instructions whose
//! operands are register rows.

pub mod lexer;
pub mod parse;
mod live;
pub mod decode;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

pub use decode::Kernel;

/// A text that is not PTX, or PTX that this interpreter does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ptx line {line}: {message}")]
pub struct ParseError {
    pub line: u32,
    pub message: String,
}

impl ParseError {
    pub(crate) fn new(line: u32, message: impl Into<String>) -> ParseError {
        ParseError { line, message: message.into() }
    }
}

/// The type of a kernel parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamType {
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F32,
    F64,
    /// An array of bytes: a struct passed by value.
    Bytes,
}

/// Where a kernel parameter lies in the parameter block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamInfo {
    pub name: String,
    pub offset: usize,
    pub size: usize,
    pub align: usize,
    pub ty: ParamType,
}

/// A variable of a module in global or constant memory, with its initial bytes.
#[derive(Debug, Clone)]
pub struct ModuleVariable {
    pub name: String,
    pub align: usize,
    pub bytes: Vec<u8>,
    /// False for a variable without initialiser; the driver zeroes it.
    pub initialised: bool,
}

/// A parsed PTX module.
#[derive(Debug)]
pub struct Module {
    id: u64,
    kernels: Vec<Kernel>,
    by_name: HashMap<String, usize>,
    variables: Vec<ModuleVariable>,
}

impl Module {
    /// Parses and decodes a whole PTX module.
    ///
    /// Errors: the first line that is not known PTX.
    pub fn parse(text: &str) -> Result<Module, ParseError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let parsed = parse::parse(text)?;
        let mut kernels = Vec::new();
        let mut by_name = HashMap::new();
        for function in &parsed.kernels {
            by_name.insert(function.name.clone(), kernels.len());
            kernels.push(decode::decode(&parsed, function)?);
        }
        let variables = parsed.variables;
        Ok(Module { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), kernels, by_name, variables })
    }

    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.by_name.get(name).map(|&i| &self.kernels[i])
    }

    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// Variables in global and constant memory, in the order of the text.
    pub fn variables(&self) -> &[ModuleVariable] {
        &self.variables
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}
