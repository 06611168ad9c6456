//! Statements -> instructions whose operands are register rows.
//!
//! A row is 32 lanes of 32 bits; a 64-bit register takes two rows in a line. Immediates and special
//! registers are rows too, filled before the first instruction, so that an instruction has one form
//! whatever its operands are. Predicates are 32-bit lane masks in an own file.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::parse::{Function, Operand, Parsed, Place, RegClass, Statement, type_bytes};
use super::{ParamInfo, ParseError, live};
use crate::checks::SourceLine;
use crate::counters::InstClass;

/// Generic addresses of shared memory begin here.
pub const SHARED_WINDOW: u64 = 1 << 48;
/// Generic addresses of local memory begin here.
pub const LOCAL_WINDOW: u64 = 1 << 49;
/// No register: a sink, an absent guard.
pub const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ty {
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    Bf16,
    F32,
    F64,
    F16x2,
    Bf16x2,
}

impl Ty {
    pub fn parse(text: &str) -> Option<Ty> {
        Some(match text {
            "u8" | "b8" => Ty::U8,
            "s8" => Ty::S8,
            "u16" | "b16" => Ty::U16,
            "s16" => Ty::S16,
            "u32" | "b32" => Ty::U32,
            "s32" => Ty::S32,
            "u64" | "b64" => Ty::U64,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "bf16" => Ty::Bf16,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            "f16x2" => Ty::F16x2,
            "bf16x2" => Ty::Bf16x2,
            _ => return None,
        })
    }

    pub fn class(self) -> RegClass {
        match self {
            Ty::U8 | Ty::S8 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 => RegClass::B16,
            Ty::U32 | Ty::S32 | Ty::F32 | Ty::F16x2 | Ty::Bf16x2 => RegClass::B32,
            Ty::U64 | Ty::S64 | Ty::F64 => RegClass::B64,
        }
    }

    pub fn bits(self) -> u32 {
        match self {
            Ty::U8 | Ty::S8 => 8,
            Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 => 16,
            Ty::U32 | Ty::S32 | Ty::F32 | Ty::F16x2 | Ty::Bf16x2 => 32,
            Ty::U64 | Ty::S64 | Ty::F64 => 64,
        }
    }

    pub fn is_signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    pub fn is_float(self) -> bool {
        matches!(self, Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64 | Ty::F16x2 | Ty::Bf16x2)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    None,
    /// To nearest, ties to even.
    Nearest,
    Zero,
    Down,
    Up,
    /// To an integral value.
    NearestInt,
    ZeroInt,
    DownInt,
    UpInt,
    NearestAway,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntOp {
    Add,
    Sub,
    Mul,
    MulHi,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    Shl,
    Shr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntUnary {
    Not,
    Cnot,
    Neg,
    Abs,
    Popc,
    Clz,
    Brev,
    Bfind,
    BfindShift,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatOp {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
    Copysign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatUnary {
    Neg,
    Abs,
    Sqrt,
    Rsqrt,
    Rcp,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

/// How a float result is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloatMode {
    pub round: Round,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
}

impl FloatMode {
    /// Nothing but rounding to nearest.
    pub fn is_plain(self) -> bool {
        matches!(self.round, Round::None | Round::Nearest) && !self.ftz && !self.sat && !self.relu
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// The unordered forms are true when an operand is NaN.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logic {
    And,
    Or,
    Xor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    Global,
    Shared,
    Local,
    Generic,
}

/// A load, store or asynchronous copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemOp {
    pub space: Space,
    /// Bytes of one element.
    pub width: u8,
    pub count: u8,
    pub signed: bool,
    /// The address register has 64 bits.
    pub wide_address: bool,
    pub offset: i32,
    /// Class of the data registers.
    pub wide_data: bool,
    pub half_data: bool,
    pub volatile: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtomOp {
    Add,
    Min,
    Max,
    Exch,
    Cas,
    And,
    Or,
    Xor,
    Inc,
    Dec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShuffleMode {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarrierKind {
    Sync,
    Arrive,
    Popc,
    And,
    Or,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MmaShape {
    /// m16n8k16, f32 accumulators.
    K16 { bf16: bool },
    /// m16n8k8, f32 accumulators.
    K8 { bf16: bool },
    /// m16n8k16 with f16 accumulators.
    K16HalfAcc,
    /// m16n8k32 on bytes.
    K32Int { a_signed: bool, b_signed: bool, sat: bool },
    /// m16n8k16 on bytes.
    K16Int { a_signed: bool, b_signed: bool, sat: bool },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    Mov32,
    Mov64,
    MovPred,
    MovPredConst(bool),
    /// Parts (list at `a`, `count`) of `part_bits` into `d`.
    Pack {
        count: u8,
        part_bits: u8,
        wide: bool,
    },
    /// `a` into parts (list at `d`).
    Unpack {
        count: u8,
        part_bits: u8,
        wide: bool,
    },
    ReadClock {
        wide: bool,
    },
    ActiveMask,
    Int {
        op: IntOp,
        ty: Ty,
    },
    IntSat {
        subtract: bool,
    },
    IntUn {
        op: IntUnary,
        ty: Ty,
    },
    /// `d` twice as wide as `a` and `b`.
    MulWide(Ty),
    MadLo(Ty),
    MadHi(Ty),
    MadWide(Ty),
    Mul24 {
        signed: bool,
        high: bool,
    },
    Lop3(u8),
    Shf {
        left: bool,
        wrap: bool,
    },
    Bfe(Ty),
    /// Fourth operand: list at `c`.
    Bfi {
        wide: bool,
    },
    Prmt(u8),
    Sad(Ty),
    Dp4a {
        a_signed: bool,
        b_signed: bool,
    },
    Dp2a {
        a_signed: bool,
        b_signed: bool,
        high: bool,
    },
    /// Add or subtract with the carry flag.
    Carry {
        subtract: bool,
        take: bool,
        set: bool,
        wide: bool,
    },
    MadCarry {
        high: bool,
        signed: bool,
        take: bool,
        set: bool,
    },
    Selp {
        wide: bool,
    },
    Slct {
        wide: bool,
        float: bool,
    },
    /// `d` and `q`: predicates; `p`: predicate to combine with.
    Setp {
        ty: Ty,
        cmp: Compare,
        ftz: bool,
        logic: Option<Logic>,
        p: u32,
        p_negated: bool,
        q: u32,
    },
    Set {
        ty: Ty,
        cmp: Compare,
        ftz: bool,
        float_result: bool,
    },
    PredLogic(Logic),
    PredNot,
    F32 {
        op: FloatOp,
        mode: FloatMode,
    },
    F32Un {
        op: FloatUnary,
        mode: FloatMode,
    },
    F32Fma(FloatMode),
    F64 {
        op: FloatOp,
        mode: FloatMode,
    },
    F64Un {
        op: FloatUnary,
        mode: FloatMode,
    },
    F64Fma(FloatMode),
    Testp {
        wide: bool,
        kind: u8,
    },
    Half {
        op: FloatOp,
        ty: Ty,
        mode: FloatMode,
    },
    HalfUn {
        op: FloatUnary,
        ty: Ty,
        mode: FloatMode,
    },
    HalfFma {
        ty: Ty,
        mode: FloatMode,
    },
    Cvt {
        to: Ty,
        from: Ty,
        wide_to: bool,
        half_to: bool,
        wide_from: bool,
        mode: FloatMode,
    },
    /// `a` to the upper half.
    CvtPack {
        to: Ty,
        mode: FloatMode,
    },
    CvtTf32,
    /// cvt.pack.sat.T.s32: `b` to the low part, `c` is shifted in (8-bit forms).
    CvtPackInt {
        to: Ty,
        shift_in: bool,
    },
    LdParam {
        offset: u32,
        width: u8,
        count: u8,
        signed: bool,
        wide_data: bool,
        half_data: bool,
    },
    Ld(MemOp),
    St(MemOp),
    /// `d` result or NONE, `a` address, `b` operand, `c` second operand of cas.
    Atom {
        op: AtomOp,
        ty: Ty,
        space: Space,
        wide_address: bool,
        offset: i32,
    },
    Cvta {
        add: bool,
        window: u64,
    },
    Isspacep(Space),
    Shfl {
        mode: ShuffleMode,
        p: u32,
        mask: u32,
    },
    Vote {
        kind: Vote,
        p_negated: bool,
    },
    Match {
        all: bool,
        wide: bool,
        p: u32,
    },
    Redux {
        op: AtomOp,
        signed: bool,
    },
    Elect {
        p: u32,
    },
    BarWarp,
    /// `a`: id; `b`: thread count or NONE; `c`: predicate of a reduction.
    Barrier {
        kind: BarrierKind,
        p_negated: bool,
    },
    Fence,
    /// `d`: shared address, `a`: global address, `b`: source size or NONE.
    CpAsync {
        bytes: u8,
        wide_d: bool,
        wide_a: bool,
        d_offset: i32,
        a_offset: i32,
        ignore: u32,
        ignore_negated: bool,
    },
    CpCommit,
    CpWait {
        all: bool,
        groups: u32,
    },
    /// Destinations: list at `d`.
    Ldmatrix {
        count: u8,
        trans: bool,
        wide_address: bool,
        offset: i32,
    },
    /// Sources: list at `d`.
    Stmatrix {
        count: u8,
        trans: bool,
        wide_address: bool,
        offset: i32,
    },
    MovMatrix,
    /// Lists at d, a, b, c.
    Mma(MmaShape),
    /// Target in `d`.
    Bra,
    /// Targets: list at `d` with its length first; index in `a`.
    Brx,
    Exit,
    Trap,
    Nop,
}

#[derive(Debug, Clone, Copy)]
pub struct Inst {
    pub op: Op,
    pub guard: u32,
    pub guard_negated: bool,
    pub d: u32,
    pub a: u32,
    pub b: u32,
    pub c: u32,
}

/// What messages and counters need to know of an instruction.
#[derive(Debug, Clone)]
pub struct InstInfo {
    pub line: u32,
    pub source: Option<(u32, u32)>,
    pub opcode: String,
    pub class: InstClass,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    TidX,
    TidY,
    TidZ,
    NtidX,
    NtidY,
    NtidZ,
    CtaidX,
    CtaidY,
    CtaidZ,
    NctaidX,
    NctaidY,
    NctaidZ,
    LaneId,
    WarpId,
    NwarpId,
    SmId,
    NsmId,
    GridId,
    MaskEq,
    MaskLt,
    MaskLe,
    MaskGt,
    MaskGe,
    DynamicSharedBytes,
    TotalSharedBytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Const {
    Bits32(u32),
    Bits64(u64),
    /// Address of a module variable.
    Variable {
        index: usize,
        offset: i64,
    },
    Special(Special),
}

/// A decoded kernel.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) params: Vec<ParamInfo>,
    pub(crate) param_bytes: usize,
    pub(crate) insts: Vec<Inst>,
    pub(crate) infos: Vec<InstInfo>,
    pub(crate) lists: Vec<u32>,
    pub(crate) consts: Vec<(u32, Const)>,
    pub(crate) rows: u32,
    pub(crate) preds: u32,
    pub(crate) shared_bytes: u32,
    pub(crate) dynamic_base: u32,
    pub(crate) local_bytes: u32,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) required_threads: Option<[u32; 3]>,
    /// The smallest access to shared memory, in bytes: the grain of the race check.
    pub(crate) shared_grain: u32,
    pub(crate) files: HashMap<u32, String>,
}

impl Kernel {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn params(&self) -> &[ParamInfo] {
        &self.params
    }

    /// Bytes of the parameter block.
    pub fn param_bytes(&self) -> usize {
        self.param_bytes
    }

    /// Statically declared shared memory in bytes.
    pub fn static_shared_bytes(&self) -> u32 {
        self.shared_bytes
    }

    pub fn local_bytes(&self) -> u32 {
        self.local_bytes
    }

    /// `.maxntid`, from `__launch_bounds__`.
    pub fn max_threads(&self) -> Option<[u32; 3]> {
        self.max_threads
    }

    pub fn num_instructions(&self) -> usize {
        self.insts.len()
    }

    /// Distinct opcodes with their counts in the text.
    pub fn opcodes(&self) -> std::collections::BTreeMap<&str, usize> {
        let mut counts = std::collections::BTreeMap::new();
        for info in &self.infos {
            *counts.entry(info.opcode.as_str()).or_default() += 1;
        }
        counts
    }

    pub(crate) fn source(&self, info: &InstInfo) -> Option<SourceLine> {
        let (file, line) = info.source?;
        let file = self.files.get(&file).cloned().unwrap_or_default();
        Some(SourceLine { file, line })
    }
}

pub fn decode(parsed: &Parsed, function: &Function) -> Result<Kernel, ParseError> {
    let mut decoder = Decoder {
        parsed,
        function,
        rows: 0,
        preds: 0,
        slots: Vec::new(),
        consts: HashMap::new(),
        lists: Vec::new(),
        insts: Vec::with_capacity(function.statements.len() + 1),
        infos: Vec::with_capacity(function.statements.len() + 1),
        line: function.line,
        opcode: String::new(),
        shared_grain: 4,
    };
    decoder.registers();
    for statement in &function.statements {
        decoder.statement(statement)?;
    }
    // Falling off the end is an exit.
    decoder.insts.push(Inst {
        op: Op::Exit,
        guard: NONE,
        guard_negated: false,
        d: 0,
        a: 0,
        b: 0,
        c: 0,
    });
    decoder.infos.push(InstInfo {
        line: decoder.line,
        source: None,
        opcode: "exit".to_string(),
        class: InstClass::Control,
    });
    let mut consts: Vec<(u32, Const)> = decoder.consts.iter().map(|(&k, &row)| (row, k)).collect();
    consts.sort_by_key(|c| c.0);
    Ok(Kernel {
        name: function.name.clone(),
        params: function.params.clone(),
        param_bytes: function.param_bytes,
        insts: decoder.insts,
        infos: decoder.infos,
        lists: decoder.lists,
        consts,
        rows: decoder.rows,
        preds: decoder.preds,
        shared_bytes: function.shared_bytes,
        dynamic_base: dynamic_base(parsed, function),
        local_bytes: function.local_bytes,
        max_threads: function.max_threads,
        required_threads: function.required_threads,
        shared_grain: decoder.shared_grain,
        files: parsed.files.clone(),
    })
}

fn dynamic_base(parsed: &Parsed, function: &Function) -> u32 {
    function.shared_bytes.next_multiple_of(parsed.dynamic_align.max(16))
}

struct Decoder<'a> {
    parsed: &'a Parsed,
    function: &'a Function,
    rows: u32,
    preds: u32,
    /// Register -> row, or predicate index.
    slots: Vec<u32>,
    consts: HashMap<Const, u32>,
    lists: Vec<u32>,
    insts: Vec<Inst>,
    infos: Vec<InstInfo>,
    line: u32,
    opcode: String,
    shared_grain: u32,
}

impl Decoder<'_> {
    /// Gives every register its row. Registers that are never live together share one: a warp's
    /// registers must stay in the cache, and nvcc names a new register for almost every value.
    fn registers(&mut self) {
        let spans = live::spans(self.function);
        let mut order: Vec<usize> = (0..spans.len()).collect();
        order.sort_by_key(|&r| spans[r].first);
        // Rows in use with the last statement that needs them, and rows that are free: single ones,
        // and pairs.
        let mut used: [BinaryHeap<Reverse<(usize, u32)>>; 2] = Default::default();
        let mut free: [Vec<u32>; 2] = Default::default();
        self.slots = vec![0; spans.len()];
        for r in order {
            let size = match self.function.registers[r] {
                RegClass::Pred => {
                    self.slots[r] = self.preds;
                    self.preds += 1;
                    continue;
                }
                RegClass::B16 | RegClass::B32 => 1,
                RegClass::B64 => 2,
            };
            let pool = size as usize - 1;
            while let Some(&Reverse((last, row))) = used[pool].peek()
                && last < spans[r].first
            {
                used[pool].pop();
                free[pool].push(row);
            }
            let row = free[pool].pop().unwrap_or_else(|| {
                self.rows += size;
                self.rows - size
            });
            self.slots[r] = row;
            used[pool].push(Reverse((spans[r].last, row)));
        }
    }

    fn error<T>(&self, message: impl AsRef<str>) -> Result<T, ParseError> {
        Err(ParseError::new(self.line, format!("{}: {}", self.opcode, message.as_ref())))
    }

    fn unknown<T>(&self) -> Result<T, ParseError> {
        self.error("an instruction or modifier that the virtual GPU does not know")
    }

    fn constant(&mut self, value: Const, wide: bool) -> u32 {
        if let Some(&row) = self.consts.get(&value) {
            return row;
        }
        let row = self.rows;
        self.rows += if wide { 2 } else { 1 };
        self.consts.insert(value, row);
        row
    }

    fn const32(&mut self, value: u32) -> u32 {
        self.constant(Const::Bits32(value), false)
    }

    fn const64(&mut self, value: u64) -> u32 {
        self.constant(Const::Bits64(value), true)
    }

    fn class_of(&self, operand: &Operand) -> Option<RegClass> {
        match operand {
            Operand::Reg(r) => Some(self.function.registers[*r]),
            _ => None,
        }
    }

    /// The row of an operand that is read as `class`.
    fn src(&mut self, operand: &Operand, class: RegClass) -> Result<u32, ParseError> {
        match operand {
            Operand::Reg(r) => {
                let have = self.function.registers[*r];
                if have != class {
                    return self.error(format!("a {have:?} register where {class:?} is needed"));
                }
                Ok(self.slots[*r])
            }
            Operand::Int(value) => Ok(match class {
                RegClass::B64 => self.const64(*value as u64),
                RegClass::B32 => self.const32(*value as u32),
                RegClass::B16 => self.const32(*value as u16 as u32),
                RegClass::Pred => return self.error("an integer as predicate"),
            }),
            Operand::F32(bits) => match class {
                RegClass::B32 => Ok(self.const32(*bits)),
                RegClass::B64 => {
                    let wide = f32::from_bits(*bits) as f64;
                    Ok(self.const64(wide.to_bits()))
                }
                _ => self.error("an f32 immediate here"),
            },
            Operand::F64(bits) => match class {
                RegClass::B64 => Ok(self.const64(*bits)),
                RegClass::B32 => {
                    let narrow = f64::from_bits(*bits) as f32;
                    Ok(self.const32(narrow.to_bits()))
                }
                _ => self.error("an f64 immediate here"),
            },
            Operand::Name(name) => self.name(name, class),
            other => self.error(format!("operand {other:?}")),
        }
    }

    /// The value of a variable's address or a special register.
    fn name(&mut self, name: &str, class: RegClass) -> Result<u32, ParseError> {
        if let Some(place) = self.place(name) {
            let value = match place {
                Place::Shared(offset) => offset as u64,
                Place::DynamicShared => dynamic_base(self.parsed, self.function) as u64,
                Place::Local(offset) => offset as u64,
                Place::Module(index) => {
                    if class != RegClass::B64 {
                        return self.error("a 32-bit address of a global variable");
                    }
                    return Ok(self.constant(Const::Variable { index, offset: 0 }, true));
                }
                Place::Param(_) => return self.error("the address of a parameter"),
            };
            return match class {
                RegClass::B64 => Ok(self.const64(value)),
                RegClass::B32 => Ok(self.const32(value as u32)),
                _ => self.error("an address in a 16-bit register"),
            };
        }
        let special = match name {
            "%tid.x" => Special::TidX,
            "%tid.y" => Special::TidY,
            "%tid.z" => Special::TidZ,
            "%ntid.x" => Special::NtidX,
            "%ntid.y" => Special::NtidY,
            "%ntid.z" => Special::NtidZ,
            "%ctaid.x" => Special::CtaidX,
            "%ctaid.y" => Special::CtaidY,
            "%ctaid.z" => Special::CtaidZ,
            "%nctaid.x" => Special::NctaidX,
            "%nctaid.y" => Special::NctaidY,
            "%nctaid.z" => Special::NctaidZ,
            "%laneid" => Special::LaneId,
            "%warpid" => Special::WarpId,
            "%nwarpid" => Special::NwarpId,
            "%smid" => Special::SmId,
            "%nsmid" => Special::NsmId,
            "%gridid" => Special::GridId,
            "%lanemask_eq" => Special::MaskEq,
            "%lanemask_lt" => Special::MaskLt,
            "%lanemask_le" => Special::MaskLe,
            "%lanemask_gt" => Special::MaskGt,
            "%lanemask_ge" => Special::MaskGe,
            "%dynamic_smem_size" => Special::DynamicSharedBytes,
            "%total_smem_size" => Special::TotalSharedBytes,
            "WARP_SZ" => return Ok(self.const32(32)),
            other => return self.error(format!("name {other}")),
        };
        if class != RegClass::B32 {
            return self.error(format!("{name} in a register that has not 32 bits"));
        }
        Ok(self.constant(Const::Special(special), false))
    }

    fn place(&self, name: &str) -> Option<Place> {
        self.function.variables.get(name).or_else(|| self.parsed.names.get(name)).copied()
    }

    fn dst(&mut self, operand: &Operand, class: RegClass) -> Result<u32, ParseError> {
        match operand {
            Operand::Reg(_) => self.src(operand, class),
            // A sink still needs a place to write to; nobody reads it.
            Operand::Sink => {
                let row = self.rows;
                self.rows += if class == RegClass::B64 { 2 } else { 1 };
                Ok(row)
            }
            other => self.error(format!("destination {other:?}")),
        }
    }

    fn pred(&mut self, operand: &Operand) -> Result<(u32, bool), ParseError> {
        match operand {
            Operand::Reg(r) if self.function.registers[*r] == RegClass::Pred => {
                Ok((self.slots[*r], false))
            }
            Operand::Not(inner) => self.pred(inner).map(|(p, negated)| (p, !negated)),
            other => self.error(format!("expected a predicate, found {other:?}")),
        }
    }

    fn pred_dst(&mut self, operand: &Operand) -> Result<u32, ParseError> {
        match operand {
            Operand::Sink => {
                self.preds += 1;
                Ok(self.preds - 1)
            }
            other => self.pred(other).map(|p| p.0),
        }
    }

    fn list(&mut self, values: &[u32]) -> u32 {
        let start = self.lists.len() as u32;
        self.lists.extend_from_slice(values);
        start
    }

    /// Splits `[base + offset]` into the address row, whether it is 64 bits wide, and the offset.
    fn address(&mut self, operand: &Operand) -> Result<(u32, bool, i32), ParseError> {
        let Operand::Memory(base, offset) = operand else {
            return self.error(format!("expected an address, found {operand:?}"));
        };
        let Ok(offset) = i32::try_from(*offset) else {
            return self.error(format!("address offset {offset}"));
        };
        match self.class_of(base) {
            Some(RegClass::B32) => Ok((self.src(base, RegClass::B32)?, false, offset)),
            Some(RegClass::B64) | None => Ok((self.src(base, RegClass::B64)?, true, offset)),
            Some(_) => self.error("an address in a small register"),
        }
    }

    fn emit(&mut self, guard: Option<(usize, bool)>, s: &Statement, class: InstClass, body: Body) {
        let (guard, guard_negated) = match guard {
            Some((reg, negated)) => (self.slots[reg], negated),
            None => (NONE, false),
        };
        let [d, a, b, c] = body.rows;
        self.insts.push(Inst { op: body.op, guard, guard_negated, d, a, b, c });
        let opcode = self.opcode.clone();
        self.infos.push(InstInfo { line: s.line, source: s.source, opcode, class });
    }

    fn statement(&mut self, s: &Statement) -> Result<(), ParseError> {
        self.line = s.line;
        self.opcode = s.opcode_text();
        if let Some((reg, _)) = s.guard
            && self.function.registers[reg] != RegClass::Pred
        {
            return self.error("guard that is not a predicate");
        }
        let m: Vec<&str> = s.opcode[1..].iter().map(String::as_str).collect();
        let o = &s.operands[..];
        let (class, body) = match s.opcode[0].as_str() {
            "mov" => (InstClass::Move, self.mov(&m, o)?),
            "add" | "sub" | "mul" | "div" | "min" | "max" | "rem" | "copysign" => {
                self.arithmetic(&s.opcode[0], &m, o)?
            }
            "fma" => (InstClass::Fp, self.fma(&m, o)?),
            "mad" => self.mad(&m, o)?,
            "mul24" => (InstClass::Int, self.mul24(&m, o)?),
            "and" | "or" | "xor" | "not" | "shl" | "shr" => {
                (InstClass::Int, self.logic(&s.opcode[0], &m, o)?)
            }
            "neg" | "abs" | "sqrt" | "rsqrt" | "rcp" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => {
                self.unary(&s.opcode[0], &m, o)?
            }
            "popc" | "clz" | "brev" | "bfind" | "cnot" => {
                (InstClass::Int, self.bit_unary(&s.opcode[0], &m, o)?)
            }
            "lop3" | "shf" | "bfe" | "bfi" | "prmt" | "sad" | "dp4a" | "dp2a" => {
                (InstClass::Int, self.bits(&s.opcode[0], &m, o)?)
            }
            "addc" | "subc" | "madc" => (InstClass::Int, self.carry(&s.opcode[0], &m, o)?),
            "setp" => (InstClass::Int, self.setp(&m, o)?),
            "set" => (InstClass::Int, self.set(&m, o)?),
            "selp" | "slct" => (InstClass::Move, self.select(&s.opcode[0], &m, o)?),
            "testp" => (InstClass::Fp, self.testp(&m, o)?),
            "cvt" => (InstClass::Move, self.cvt(&m, o)?),
            "cvta" => (InstClass::Move, self.cvta(&m, o)?),
            "isspacep" => (InstClass::Move, self.isspacep(&m, o)?),
            "ld" | "ldu" => self.load(&m, o)?,
            "st" => self.store(&m, o)?,
            "atom" | "red" => (InstClass::Atomic, self.atom(s.opcode[0] == "red", &m, o)?),
            "shfl" => (InstClass::Shuffle, self.shfl(&m, o)?),
            "vote" | "match" | "redux" | "activemask" | "elect" => {
                (InstClass::Shuffle, self.warp_collective(&s.opcode[0], &m, o)?)
            }
            "bar" | "barrier" => (InstClass::Sync, self.barrier(&m, o)?),
            "membar" | "fence" => (InstClass::Fence, Body::new(Op::Fence)),
            "cp" => (InstClass::CpAsync, self.cp_async(&m, o)?),
            "ldmatrix" | "stmatrix" | "movmatrix" => {
                (InstClass::Ldmatrix, self.matrix(&s.opcode[0], &m, o)?)
            }
            "mma" => (InstClass::Mma, self.mma(&m, o)?),
            "bra" | "brx" => (InstClass::Control, self.branch(&s.opcode[0], &m, o)?),
            "ret" | "exit" => (InstClass::Control, Body::new(Op::Exit)),
            "trap" | "brkpt" => (InstClass::Control, Body::new(Op::Trap)),
            "nanosleep" | "griddepcontrol" | "prefetch" | "prefetchu" | "discard"
            | "applypriority" | "pmevent" => (InstClass::Control, Body::new(Op::Nop)),
            _ => return self.unknown(),
        };
        self.emit(s.guard, s, class, body);
        Ok(())
    }

    fn mov(&mut self, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let [ty] = m else { return self.unknown() };
        let [d, a] = o else { return self.unknown() };
        if *ty == "pred" {
            let dst = self.pred_dst(d)?;
            if let Operand::Int(value) = a {
                return Ok(Body::new(Op::MovPredConst(*value != 0)).d(dst));
            }
            let (src, negated) = self.pred(a)?;
            return Ok(Body::new(if negated { Op::PredNot } else { Op::MovPred }).d(dst).a(src));
        }
        let Some(bytes) = type_bytes(ty) else { return self.unknown() };
        let class = match bytes {
            2 => RegClass::B16,
            4 => RegClass::B32,
            8 => RegClass::B64,
            _ => return self.unknown(),
        };
        let wide = class == RegClass::B64;
        if let Operand::Vector(parts) = a {
            let part = self.part_class(bytes, parts.len())?;
            let rows = parts.iter().map(|p| self.src(p, part)).collect::<Result<Vec<_>, _>>()?;
            let list = self.list(&rows);
            let op = Op::Pack {
                count: parts.len() as u8,
                part_bits: (bytes * 8 / parts.len() as u32) as u8,
                wide,
            };
            return Ok(Body::new(op).d(self.dst(d, class)?).a(list));
        }
        if let Operand::Vector(parts) = d {
            let part = self.part_class(bytes, parts.len())?;
            let rows = parts.iter().map(|p| self.dst(p, part)).collect::<Result<Vec<_>, _>>()?;
            let list = self.list(&rows);
            let op = Op::Unpack {
                count: parts.len() as u8,
                part_bits: (bytes * 8 / parts.len() as u32) as u8,
                wide,
            };
            return Ok(Body::new(op).d(list).a(self.src(a, class)?));
        }
        if let Operand::Name(name) = a
            && matches!(
                name.as_str(),
                "%clock" | "%clock_hi" | "%clock64" | "%globaltimer" | "%globaltimer_lo"
            )
        {
            return Ok(Body::new(Op::ReadClock { wide }).d(self.dst(d, class)?));
        }
        let op = if wide { Op::Mov64 } else { Op::Mov32 };
        Ok(Body::new(op).d(self.dst(d, class)?).a(self.src(a, class)?))
    }

    fn part_class(&self, bytes: u32, parts: usize) -> Result<RegClass, ParseError> {
        match (bytes, parts) {
            (4, 2) | (8, 4) => Ok(RegClass::B16),
            (8, 2) => Ok(RegClass::B32),
            _ => self.error("vector of this many parts"),
        }
    }

    /// Modifiers of a float instruction without its type; unknown words are refused.
    fn float_mode(&self, modifiers: &[&str]) -> Result<FloatMode, ParseError> {
        let mut mode = FloatMode { round: Round::None, ftz: false, sat: false, relu: false };
        for &word in modifiers {
            match word {
                "rn" => mode.round = Round::Nearest,
                "rz" => mode.round = Round::Zero,
                "rm" => mode.round = Round::Down,
                "rp" => mode.round = Round::Up,
                "rna" => mode.round = Round::NearestAway,
                "rni" => mode.round = Round::NearestInt,
                "rzi" => mode.round = Round::ZeroInt,
                "rmi" => mode.round = Round::DownInt,
                "rpi" => mode.round = Round::UpInt,
                "ftz" => mode.ftz = true,
                "sat" => mode.sat = true,
                "relu" => mode.relu = true,
                _ => return self.unknown(),
            }
        }
        Ok(mode)
    }

    fn last_ty(&self, m: &[&str]) -> Result<Ty, ParseError> {
        match m.last().and_then(|t| Ty::parse(t)) {
            Some(ty) => Ok(ty),
            None => self.unknown(),
        }
    }

    fn three(&mut self, o: &[Operand], class: RegClass) -> Result<Body, ParseError> {
        let [d, a, b] = o else { return self.error("expected three operands") };
        Ok(Body::new(Op::Nop).d(self.dst(d, class)?).a(self.src(a, class)?).b(self.src(b, class)?))
    }

    fn four(&mut self, o: &[Operand], class: RegClass) -> Result<Body, ParseError> {
        let [d, a, b, c] = o else { return self.error("expected four operands") };
        Ok(Body::new(Op::Nop)
            .d(self.dst(d, class)?)
            .a(self.src(a, class)?)
            .b(self.src(b, class)?)
            .c(self.src(c, class)?))
    }

    fn arithmetic(
        &mut self,
        name: &str,
        m: &[&str],
        o: &[Operand],
    ) -> Result<(InstClass, Body), ParseError> {
        let ty = self.last_ty(m)?;
        let rest = &m[..m.len() - 1];
        if ty.is_float() {
            return Ok((InstClass::Fp, self.float_arithmetic(name, ty, rest, o)?));
        }
        if rest == ["cc"] && matches!(name, "add" | "sub") {
            let op = Op::Carry {
                subtract: name == "sub",
                take: false,
                set: true,
                wide: ty.bits() == 64,
            };
            return Ok((InstClass::Int, self.three(o, ty.class())?.op(op)));
        }
        if rest == ["sat"] && ty == Ty::S32 && matches!(name, "add" | "sub") {
            let op = Op::IntSat { subtract: name == "sub" };
            return Ok((InstClass::Int, self.three(o, ty.class())?.op(op)));
        }
        let op = match (name, rest) {
            ("add", []) => IntOp::Add,
            ("sub", []) => IntOp::Sub,
            ("mul", ["lo"]) => IntOp::Mul,
            ("mul", ["hi"]) => IntOp::MulHi,
            ("mul", ["wide"]) => {
                let wide = match ty.bits() {
                    16 => RegClass::B32,
                    32 => RegClass::B64,
                    _ => return self.unknown(),
                };
                let [d, a, b] = o else { return self.unknown() };
                let body = Body::new(Op::MulWide(ty))
                    .d(self.dst(d, wide)?)
                    .a(self.src(a, ty.class())?)
                    .b(self.src(b, ty.class())?);
                return Ok((InstClass::Int, body));
            }
            ("div", []) => IntOp::Div,
            ("rem", []) => IntOp::Rem,
            ("min", []) => IntOp::Min,
            ("max", []) => IntOp::Max,
            _ => return self.unknown(),
        };
        if ty.bits() < 16 {
            return self.unknown();
        }
        Ok((InstClass::Int, self.three(o, ty.class())?.op(Op::Int { op, ty })))
    }

    fn float_arithmetic(
        &mut self,
        name: &str,
        ty: Ty,
        rest: &[&str],
        o: &[Operand],
    ) -> Result<Body, ParseError> {
        let mut rest: Vec<&str> = rest.to_vec();
        let nan = rest.contains(&"NaN");
        rest.retain(|w| !matches!(*w, "NaN" | "approx" | "full"));
        let op = match name {
            "add" => FloatOp::Add,
            "sub" => FloatOp::Sub,
            "mul" => FloatOp::Mul,
            "div" => FloatOp::Div,
            "min" if nan => FloatOp::MinNan,
            "max" if nan => FloatOp::MaxNan,
            "min" => FloatOp::Min,
            "max" => FloatOp::Max,
            "copysign" => FloatOp::Copysign,
            _ => return self.unknown(),
        };
        if o.len() == 4 {
            return self.unknown();
        }
        let mode = self.float_mode(&rest)?;
        let mut body = self.three(o, ty.class())?;
        if op == FloatOp::Copysign {
            // copysign d, a, b: the sign of a, the value of b.
            body = body.swap_ab();
        }
        Ok(match ty {
            Ty::F32 => body.op(Op::F32 { op, mode }),
            Ty::F64 => body.op(Op::F64 { op, mode }),
            _ => body.op(Op::Half { op, ty, mode }),
        })
    }

    fn fma(&mut self, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let ty = self.last_ty(m)?;
        let mode = self.float_mode(&m[..m.len() - 1])?;
        let body = self.four(o, ty.class())?;
        Ok(match ty {
            Ty::F32 => body.op(Op::F32Fma(mode)),
            Ty::F64 => body.op(Op::F64Fma(mode)),
            Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2 => body.op(Op::HalfFma { ty, mode }),
            _ => return self.unknown(),
        })
    }

    fn mad(&mut self, m: &[&str], o: &[Operand]) -> Result<(InstClass, Body), ParseError> {
        let ty = self.last_ty(m)?;
        if ty.is_float() {
            return Ok((InstClass::Fp, self.fma(m, o)?));
        }
        let body = match m {
            ["lo", _] => self.four(o, ty.class())?.op(Op::MadLo(ty)),
            ["hi", _] => self.four(o, ty.class())?.op(Op::MadHi(ty)),
            ["lo" | "hi", "cc", _] if ty.bits() == 32 => {
                let (high, signed) = (m[0] == "hi", ty.is_signed());
                self.four(o, ty.class())?.op(Op::MadCarry { high, signed, take: false, set: true })
            }
            ["wide", _] => {
                let wide = match ty.bits() {
                    16 => RegClass::B32,
                    32 => RegClass::B64,
                    _ => return self.unknown(),
                };
                let [d, a, b, c] = o else { return self.unknown() };
                Body::new(Op::MadWide(ty))
                    .d(self.dst(d, wide)?)
                    .a(self.src(a, ty.class())?)
                    .b(self.src(b, ty.class())?)
                    .c(self.src(c, wide)?)
            }
            _ => return self.unknown(),
        };
        Ok((InstClass::Int, body))
    }

    fn mul24(&mut self, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let [half @ ("lo" | "hi"), ty @ ("u32" | "s32")] = m else { return self.unknown() };
        let op = Op::Mul24 { signed: *ty == "s32", high: *half == "hi" };
        Ok(self.three(o, RegClass::B32)?.op(op))
    }

    fn logic(&mut self, name: &str, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        if m == ["pred"] {
            let dst = self.pred_dst(&o[0])?;
            if name == "not" {
                let (a, negated) = self.pred(&o[1])?;
                return Ok(Body::new(if negated { Op::MovPred } else { Op::PredNot }).d(dst).a(a));
            }
            let logic = self.logic_word(name)?;
            let [_, a, b] = o else { return self.unknown() };
            let ((a, false), (b, false)) = (self.pred(a)?, self.pred(b)?) else {
                return self.error("negated operand");
            };
            return Ok(Body::new(Op::PredLogic(logic)).d(dst).a(a).b(b));
        }
        let ty = self.last_ty(m)?;
        if m.len() != 1 || ty.is_float() || ty.bits() < 16 {
            return self.unknown();
        }
        if name == "not" {
            return self.two(o, ty, Op::IntUn { op: IntUnary::Not, ty });
        }
        let op = match name {
            "and" => IntOp::And,
            "or" => IntOp::Or,
            "xor" => IntOp::Xor,
            "shl" => IntOp::Shl,
            _ => IntOp::Shr,
        };
        if matches!(op, IntOp::Shl | IntOp::Shr) {
            let [d, a, b] = o else { return self.unknown() };
            return Ok(Body::new(Op::Int { op, ty })
                .d(self.dst(d, ty.class())?)
                .a(self.src(a, ty.class())?)
                .b(self.src(b, RegClass::B32)?));
        }
        Ok(self.three(o, ty.class())?.op(Op::Int { op, ty }))
    }

    fn logic_word(&self, word: &str) -> Result<Logic, ParseError> {
        match word {
            "and" => Ok(Logic::And),
            "or" => Ok(Logic::Or),
            "xor" => Ok(Logic::Xor),
            _ => self.unknown(),
        }
    }

    fn two(&mut self, o: &[Operand], ty: Ty, op: Op) -> Result<Body, ParseError> {
        let [d, a] = o else { return self.error("expected two operands") };
        Ok(Body::new(op).d(self.dst(d, ty.class())?).a(self.src(a, ty.class())?))
    }

    fn unary(
        &mut self,
        name: &str,
        m: &[&str],
        o: &[Operand],
    ) -> Result<(InstClass, Body), ParseError> {
        let ty = self.last_ty(m)?;
        if !ty.is_float() {
            let op = match name {
                "neg" => IntUnary::Neg,
                "abs" => IntUnary::Abs,
                _ => return self.unknown(),
            };
            if m.len() != 1 {
                return self.unknown();
            }
            return Ok((InstClass::Int, self.two(o, ty, Op::IntUn { op, ty })?));
        }
        let op = match name {
            "neg" => FloatUnary::Neg,
            "abs" => FloatUnary::Abs,
            "sqrt" => FloatUnary::Sqrt,
            "rsqrt" => FloatUnary::Rsqrt,
            "rcp" => FloatUnary::Rcp,
            "ex2" => FloatUnary::Ex2,
            "lg2" => FloatUnary::Lg2,
            "sin" => FloatUnary::Sin,
            "cos" => FloatUnary::Cos,
            _ => FloatUnary::Tanh,
        };
        let rest: Vec<&str> = m[..m.len() - 1].iter().copied().filter(|w| *w != "approx").collect();
        let mode = self.float_mode(&rest)?;
        let op = match ty {
            Ty::F32 => Op::F32Un { op, mode },
            Ty::F64 => Op::F64Un { op, mode },
            _ => Op::HalfUn { op, ty, mode },
        };
        Ok((InstClass::Fp, self.two(o, ty, op)?))
    }

    fn bit_unary(&mut self, name: &str, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let ty = self.last_ty(m)?;
        let op = match (name, &m[..m.len() - 1]) {
            ("popc", []) => IntUnary::Popc,
            ("clz", []) => IntUnary::Clz,
            ("brev", []) => IntUnary::Brev,
            ("cnot", []) => IntUnary::Cnot,
            ("bfind", []) => IntUnary::Bfind,
            ("bfind", ["shiftamt"]) => IntUnary::BfindShift,
            _ => return self.unknown(),
        };
        if matches!(op, IntUnary::Brev | IntUnary::Cnot) {
            return self.two(o, ty, Op::IntUn { op, ty });
        }
        if ty.bits() < 32 {
            return self.unknown();
        }
        let [d, a] = o else { return self.unknown() };
        Ok(Body::new(Op::IntUn { op, ty })
            .d(self.dst(d, RegClass::B32)?)
            .a(self.src(a, ty.class())?))
    }

    fn bits(&mut self, name: &str, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let b32 = RegClass::B32;
        match (name, m) {
            ("lop3", ["b32"]) => {
                let [rest @ .., Operand::Int(table)] = o else { return self.unknown() };
                Ok(self.four(rest, b32)?.op(Op::Lop3(*table as u8)))
            }
            ("shf", [way @ ("l" | "r"), edge @ ("clamp" | "wrap"), "b32"]) => {
                Ok(self.four(o, b32)?.op(Op::Shf { left: *way == "l", wrap: *edge == "wrap" }))
            }
            ("bfe", [_]) => {
                let ty = self.last_ty(m)?;
                let [d, a, b, c] = o else { return self.unknown() };
                Ok(Body::new(Op::Bfe(ty))
                    .d(self.dst(d, ty.class())?)
                    .a(self.src(a, ty.class())?)
                    .b(self.src(b, b32)?)
                    .c(self.src(c, b32)?))
            }
            ("bfi", [_]) => {
                let ty = self.last_ty(m)?;
                let [f, a, b, c, d] = o else { return self.unknown() };
                let (c, d) = (self.src(c, b32)?, self.src(d, b32)?);
                let list = self.list(&[c, d]);
                Ok(Body::new(Op::Bfi { wide: ty.bits() == 64 })
                    .d(self.dst(f, ty.class())?)
                    .a(self.src(a, ty.class())?)
                    .b(self.src(b, ty.class())?)
                    .c(list))
            }
            ("prmt", ["b32"]) => Ok(self.four(o, b32)?.op(Op::Prmt(0))),
            ("prmt", ["b32", mode]) => {
                let mode = match *mode {
                    "f4e" => 1,
                    "b4e" => 2,
                    "rc8" => 3,
                    "ecl" => 4,
                    "ecr" => 5,
                    "rc16" => 6,
                    _ => return self.unknown(),
                };
                Ok(self.four(o, b32)?.op(Op::Prmt(mode)))
            }
            ("sad", [_]) => {
                let ty = self.last_ty(m)?;
                Ok(self.four(o, ty.class())?.op(Op::Sad(ty)))
            }
            ("dp4a", [a, b]) => {
                let op = Op::Dp4a { a_signed: *a == "s32", b_signed: *b == "s32" };
                Ok(self.four(o, b32)?.op(op))
            }
            ("dp2a", [half @ ("lo" | "hi"), a, b]) => {
                let high = *half == "hi";
                let op = Op::Dp2a { a_signed: *a == "s32", b_signed: *b == "s32", high };
                Ok(self.four(o, b32)?.op(op))
            }
            _ => self.unknown(),
        }
    }

    fn carry(&mut self, name: &str, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let ty = self.last_ty(m)?;
        let set = m.contains(&"cc");
        if name == "madc" {
            if ty.bits() != 32 || !matches!(m[0], "lo" | "hi") {
                return self.unknown();
            }
            let (high, signed) = (m[0] == "hi", ty.is_signed());
            return Ok(self.four(o, ty.class())?.op(Op::MadCarry {
                high,
                signed,
                take: true,
                set,
            }));
        }
        let op = Op::Carry { subtract: name == "subc", take: true, set, wide: ty.bits() == 64 };
        Ok(self.three(o, ty.class())?.op(op))
    }

    fn compare(&self, word: &str, ty: Ty) -> Result<Compare, ParseError> {
        Ok(match word {
            "eq" => Compare::Eq,
            "ne" => Compare::Ne,
            "lt" | "lo" => Compare::Lt,
            "le" | "ls" => Compare::Le,
            "gt" | "hi" => Compare::Gt,
            "ge" | "hs" => Compare::Ge,
            "equ" if ty.is_float() => Compare::Equ,
            "neu" if ty.is_float() => Compare::Neu,
            "ltu" if ty.is_float() => Compare::Ltu,
            "leu" if ty.is_float() => Compare::Leu,
            "gtu" if ty.is_float() => Compare::Gtu,
            "geu" if ty.is_float() => Compare::Geu,
            "num" if ty.is_float() => Compare::Num,
            "nan" if ty.is_float() => Compare::Nan,
            _ => return self.unknown(),
        })
    }

    fn setp(&mut self, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let ty = self.last_ty(m)?;
        if matches!(ty, Ty::U8 | Ty::S8 | Ty::F16x2 | Ty::Bf16x2) {
            return self.unknown();
        }
        let cmp = self.compare(m[0], ty)?;
        let mut logic = None;
        let mut ftz = false;
        for word in &m[1..m.len() - 1] {
            match *word {
                "ftz" => ftz = true,
                other => logic = Some(self.logic_word(other)?),
            }
        }
        let (d, q) = match &o[0] {
            Operand::Pair(d, q) => (self.pred_dst(d)?, self.pred_dst(q)?),
            d => (self.pred_dst(d)?, NONE),
        };
        let (p, p_negated) = match (logic, o) {
            (Some(_), [_, _, _, p]) => self.pred(p)?,
            (None, [_, _, _]) => (NONE, false),
            _ => return self.unknown(),
        };
        Ok(Body::new(Op::Setp { ty, cmp, ftz, logic, p, p_negated, q })
            .d(d)
            .a(self.src(&o[1], ty.class())?)
            .b(self.src(&o[2], ty.class())?))
    }

    fn set(&mut self, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let ty = self.last_ty(m)?;
        let cmp = self.compare(m[0], ty)?;
        let (ftz, result) = match &m[1..m.len() - 1] {
            [result] => (false, *result),
            ["ftz", result] => (true, *result),
            _ => return self.unknown(),
        };
        let float_result = match result {
            "u32" | "s32" => false,
            "f32" => true,
            _ => return self.unknown(),
        };
        let [d, a, b] = o else { return self.unknown() };
        Ok(Body::new(Op::Set { ty, cmp, ftz, float_result })
            .d(self.dst(d, RegClass::B32)?)
            .a(self.src(a, ty.class())?)
            .b(self.src(b, ty.class())?))
    }

    fn select(&mut self, name: &str, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let [d, a, b, c] = o else { return self.unknown() };
        let (ty, control) = match m {
            [ty] => (*ty, None),
            [ty, control] => (*ty, Some(*control)),
            _ => return self.unknown(),
        };
        let Some(ty) = Ty::parse(ty) else { return self.unknown() };
        let body = Body::new(Op::Nop)
            .d(self.dst(d, ty.class())?)
            .a(self.src(a, ty.class())?)
            .b(self.src(b, ty.class())?);
        let wide = ty.bits() == 64;
        if name == "selp" {
            let (p, negated) = self.pred(c)?;
            let body = body.c(p).op(Op::Selp { wide });
            return Ok(if negated { body.swap_ab() } else { body });
        }
        let float = match control {
            Some("s32") => false,
            Some("f32") => true,
            _ => return self.unknown(),
        };
        Ok(body.c(self.src(c, RegClass::B32)?).op(Op::Slct { wide, float }))
    }

    fn testp(&mut self, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let [kind, ty @ ("f32" | "f64")] = m else { return self.unknown() };
        let kind = match *kind {
            "finite" => 0,
            "infinite" => 1,
            "number" => 2,
            "notanumber" => 3,
            "normal" => 4,
            "subnormal" => 5,
            _ => return self.unknown(),
        };
        let [d, a] = o else { return self.unknown() };
        let wide = *ty == "f64";
        let class = if wide { RegClass::B64 } else { RegClass::B32 };
        Ok(Body::new(Op::Testp { wide, kind }).d(self.pred_dst(d)?).a(self.src(a, class)?))
    }

    fn cvt(&mut self, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        if m.first() == Some(&"pack") {
            return self.cvt_pack_int(m, o);
        }
        if m.len() < 2 {
            return self.unknown();
        }
        let (to, from) = (m[m.len() - 2], m[m.len() - 1]);
        let rest = &m[..m.len() - 2];
        if to == "tf32" && from == "f32" {
            if !matches!(rest, ["rna"] | ["rn"]) {
                return self.unknown();
            }
            return self.two(o, Ty::F32, Op::CvtTf32);
        }
        let (Some(to), Some(from)) = (Ty::parse(to), Ty::parse(from)) else {
            return self.unknown();
        };
        let mode = self.float_mode(rest)?;
        if let [d, a, b] = o {
            if !matches!(to, Ty::F16x2 | Ty::Bf16x2) || from != Ty::F32 {
                return self.unknown();
            }
            if !matches!(mode.round, Round::Nearest | Round::Zero) || mode.sat {
                return self.unknown();
            }
            return Ok(Body::new(Op::CvtPack { to, mode })
                .d(self.dst(d, RegClass::B32)?)
                .a(self.src(a, RegClass::B32)?)
                .b(self.src(b, RegClass::B32)?));
        }
        let [d, a] = o else { return self.unknown() };
        if matches!(to, Ty::F16x2 | Ty::Bf16x2) || matches!(from, Ty::F16x2 | Ty::Bf16x2) {
            return self.unknown();
        }
        // The registers may be wider than the types.
        let d_class = self.class_of(d).unwrap_or(to.class());
        let a_class = self.class_of(a).unwrap_or(from.class());
        let op = Op::Cvt {
            to,
            from,
            wide_to: d_class == RegClass::B64,
            half_to: d_class == RegClass::B16,
            wide_from: a_class == RegClass::B64,
            mode,
        };
        Ok(Body::new(op).d(self.dst(d, d_class)?).a(self.src(a, a_class)?))
    }

    fn cvt_pack_int(&mut self, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let b32 = RegClass::B32;
        let (to, shift_in) = match m {
            ["pack", "sat", to @ ("u16" | "s16"), "s32"] => (*to, false),
            ["pack", "sat", to @ ("u8" | "s8"), "s32", "b32"] => (*to, true),
            _ => return self.unknown(),
        };
        let Some(to) = Ty::parse(to) else { return self.unknown() };
        let op = Op::CvtPackInt { to, shift_in };
        if shift_in { Ok(self.four(o, b32)?.op(op)) } else { Ok(self.three(o, b32)?.op(op)) }
    }

    fn cvta(&mut self, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let (add, space, ty) = match m {
            ["to", space, ty] => (false, *space, *ty),
            [space, ty] => (true, *space, *ty),
            _ => return self.unknown(),
        };
        if ty != "u64" {
            return self.unknown();
        }
        let window = match space {
            "shared" | "shared::cta" => SHARED_WINDOW,
            "local" => LOCAL_WINDOW,
            "global" | "const" | "param" => 0,
            _ => return self.unknown(),
        };
        if space == "param" {
            return self.unknown();
        }
        self.two(o, Ty::U64, Op::Cvta { add, window })
    }

    fn isspacep(&mut self, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let space = match m {
            ["global"] => Space::Global,
            ["shared" | "shared::cta"] => Space::Shared,
            ["local"] => Space::Local,
            _ => return self.unknown(),
        };
        let [d, a] = o else { return self.unknown() };
        Ok(Body::new(Op::Isspacep(space)).d(self.pred_dst(d)?).a(self.src(a, RegClass::B64)?))
    }

    /// Reads the modifiers of a load or store: space, vector, type, and hints that change nothing
    /// here.
    fn memory_words(&self, m: &[&str]) -> Result<MemoryWords, ParseError> {
        let mut words = MemoryWords {
            space: Space::Generic,
            param: false,
            count: 1,
            ty: Ty::U32,
            hint: false,
            volatile: false,
        };
        let mut ty = None;
        for &word in m {
            match word {
                "global" | "const" => words.space = Space::Global,
                "shared" | "shared::cta" => words.space = Space::Shared,
                "local" => words.space = Space::Local,
                "param" => words.param = true,
                "v2" => words.count = 2,
                "v4" => words.count = 4,
                "v8" => words.count = 8,
                "volatile" | "relaxed" | "acquire" | "release" | "mmio" => words.volatile = true,
                "L2::cache_hint" => words.hint = true,
                "nc" | "weak" | "cta" | "cluster" | "gpu" | "sys" => {}
                "ca" | "cg" | "cs" | "cv" | "lu" | "wb" | "wt" => {}
                word if word.starts_with("L1::") || word.starts_with("L2::") => {}
                word => match Ty::parse(word) {
                    Some(parsed) => ty = Some(parsed),
                    None => return self.unknown(),
                },
            }
        }
        match ty {
            Some(ty) => Ok(MemoryWords { ty, ..words }),
            None => self.unknown(),
        }
    }

    fn vector<'o>(&self, operand: &'o Operand, count: u8) -> Result<&'o [Operand], ParseError> {
        match operand {
            Operand::Vector(parts) if parts.len() == count as usize => Ok(parts),
            Operand::Vector(_) => self.error("vector of another length"),
            single if count == 1 => Ok(std::slice::from_ref(single)),
            _ => self.error("expected a vector"),
        }
    }

    /// Class of data registers: the widest named, for they may be wider than the type.
    fn data_class(&self, parts: &[Operand], ty: Ty) -> RegClass {
        parts.iter().find_map(|p| self.class_of(p)).unwrap_or(ty.class())
    }

    fn load(&mut self, m: &[&str], o: &[Operand]) -> Result<(InstClass, Body), ParseError> {
        let words = self.memory_words(m)?;
        if o.len() != 2 + words.hint as usize {
            return self.unknown();
        }
        let parts = self.vector(&o[0], words.count)?;
        let class = self.data_class(parts, words.ty);
        let (wide_data, half_data) = (class == RegClass::B64, class == RegClass::B16);
        let rows = parts.iter().map(|p| self.dst(p, class)).collect::<Result<Vec<_>, _>>()?;
        let list = self.list(&rows);
        let width = (words.ty.bits() / 8) as u8;
        let signed = words.ty.is_signed();
        if words.param {
            let Operand::Memory(base, extra) = &o[1] else { return self.unknown() };
            let Operand::Name(name) = &**base else {
                return self.error("a parameter address in a register");
            };
            let Some(Place::Param(index)) = self.place(name) else {
                return self.error(format!("{name} is no parameter"));
            };
            let offset = self.function.params[index].offset as i64 + extra;
            let count = words.count;
            if offset < 0
                || offset as usize + width as usize * count as usize > self.function.param_bytes
            {
                return self.error("outside the parameters");
            }
            let offset = offset as u32;
            let op = Op::LdParam { offset, width, count, signed, wide_data, half_data };
            return Ok((InstClass::OtherMemory, Body::new(op).d(list)));
        }
        let (address, wide_address, offset) = self.address(&o[1])?;
        let mem = MemOp {
            space: words.space,
            width,
            count: words.count,
            signed,
            wide_address,
            offset,
            wide_data,
            half_data,
            volatile: words.volatile,
        };
        self.note_grain(words.space, width as u32);
        let class = match words.space {
            Space::Global | Space::Generic => InstClass::LdGlobal,
            Space::Shared => InstClass::LdShared,
            Space::Local => InstClass::OtherMemory,
        };
        Ok((class, Body::new(Op::Ld(mem)).d(list).a(address)))
    }

    fn note_grain(&mut self, space: Space, width: u32) {
        if matches!(space, Space::Shared | Space::Generic) {
            self.shared_grain = self.shared_grain.min(width);
        }
    }

    fn store(&mut self, m: &[&str], o: &[Operand]) -> Result<(InstClass, Body), ParseError> {
        let words = self.memory_words(m)?;
        if words.param || o.len() != 2 + words.hint as usize {
            return self.unknown();
        }
        let parts = self.vector(&o[1], words.count)?;
        let class = self.data_class(parts, words.ty);
        let rows = parts.iter().map(|p| self.src(p, class)).collect::<Result<Vec<_>, _>>()?;
        let list = self.list(&rows);
        let width = (words.ty.bits() / 8) as u8;
        let (address, wide_address, offset) = self.address(&o[0])?;
        let mem = MemOp {
            space: words.space,
            width,
            count: words.count,
            signed: false,
            wide_address,
            offset,
            wide_data: class == RegClass::B64,
            half_data: class == RegClass::B16,
            volatile: words.volatile,
        };
        self.note_grain(words.space, width as u32);
        let class = match words.space {
            Space::Global | Space::Generic => InstClass::StGlobal,
            Space::Shared => InstClass::StShared,
            Space::Local => InstClass::OtherMemory,
        };
        Ok((class, Body::new(Op::St(mem)).d(list).a(address)))
    }

    fn atom(&mut self, red: bool, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let mut space = Space::Generic;
        let mut op = None;
        let mut ty = None;
        for &word in m {
            match word {
                "global" => space = Space::Global,
                "shared" | "shared::cta" => space = Space::Shared,
                "relaxed" | "acquire" | "release" | "acq_rel" | "cta" | "cluster" | "gpu"
                | "sys" | "noftz" => {}
                "add" => op = Some(AtomOp::Add),
                "min" => op = Some(AtomOp::Min),
                "max" => op = Some(AtomOp::Max),
                "exch" => op = Some(AtomOp::Exch),
                "cas" => op = Some(AtomOp::Cas),
                "and" => op = Some(AtomOp::And),
                "or" => op = Some(AtomOp::Or),
                "xor" => op = Some(AtomOp::Xor),
                "inc" => op = Some(AtomOp::Inc),
                "dec" => op = Some(AtomOp::Dec),
                word => ty = Ty::parse(word),
            }
        }
        let (Some(op), Some(ty)) = (op, ty) else { return self.unknown() };
        let supported = match ty {
            Ty::U32 | Ty::S32 => true,
            Ty::U64 | Ty::S64 => !matches!(op, AtomOp::Inc | AtomOp::Dec),
            Ty::F32 | Ty::F64 | Ty::F16x2 | Ty::Bf16x2 | Ty::F16 | Ty::Bf16 => op == AtomOp::Add,
            Ty::U16 => op == AtomOp::Cas,
            _ => false,
        };
        if !supported {
            return self.unknown();
        }
        let class = ty.class();
        let first = !red as usize;
        let operands = 2 + (op == AtomOp::Cas) as usize;
        if o.len() != first + operands {
            return self.unknown();
        }
        let d = if red { NONE } else { self.dst(&o[0], class)? };
        let (address, wide_address, offset) = self.address(&o[first])?;
        let b = self.src(&o[first + 1], class)?;
        let c = if op == AtomOp::Cas { self.src(&o[first + 2], class)? } else { 0 };
        self.note_grain(space, ty.bits() / 8);
        let op = Op::Atom { op, ty, space, wide_address, offset };
        Ok(Body::new(op).d(d).a(address).b(b).c(c))
    }

    fn shfl(&mut self, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let ["sync", mode, "b32"] = m else { return self.unknown() };
        let mode = match *mode {
            "up" => ShuffleMode::Up,
            "down" => ShuffleMode::Down,
            "bfly" => ShuffleMode::Bfly,
            "idx" => ShuffleMode::Idx,
            _ => return self.unknown(),
        };
        let [d, a, b, c, mask] = o else { return self.unknown() };
        let b32 = RegClass::B32;
        let (d, p) = match d {
            Operand::Pair(d, p) => (self.dst(d, b32)?, self.pred_dst(p)?),
            d => (self.dst(d, b32)?, NONE),
        };
        let mask = self.src(mask, b32)?;
        Ok(Body::new(Op::Shfl { mode, p, mask })
            .d(d)
            .a(self.src(a, b32)?)
            .b(self.src(b, b32)?)
            .c(self.src(c, b32)?))
    }

    fn warp_collective(
        &mut self,
        name: &str,
        m: &[&str],
        o: &[Operand],
    ) -> Result<Body, ParseError> {
        let b32 = RegClass::B32;
        match (name, m) {
            ("activemask", ["b32"]) => Ok(Body::new(Op::ActiveMask).d(self.dst(&o[0], b32)?)),
            ("vote", ["sync", kind, ty]) => {
                let [d, p, mask] = o else { return self.unknown() };
                let (kind, ty_expected) = match *kind {
                    "all" => (Vote::All, "pred"),
                    "any" => (Vote::Any, "pred"),
                    "uni" => (Vote::Uni, "pred"),
                    "ballot" => (Vote::Ballot, "b32"),
                    _ => return self.unknown(),
                };
                if *ty != ty_expected {
                    return self.unknown();
                }
                let (p, p_negated) = self.pred(p)?;
                let d = if kind == Vote::Ballot { self.dst(d, b32)? } else { self.pred_dst(d)? };
                let mask = self.src(mask, b32)?;
                Ok(Body::new(Op::Vote { kind, p_negated }).d(d).a(p).b(mask))
            }
            ("match", [kind @ ("any" | "all"), "sync", ty @ ("b32" | "b64")]) => {
                let [d, a, mask] = o else { return self.unknown() };
                let (d, p) = match d {
                    Operand::Pair(d, p) => (self.dst(d, b32)?, self.pred_dst(p)?),
                    d => (self.dst(d, b32)?, NONE),
                };
                let wide = *ty == "b64";
                let class = if wide { RegClass::B64 } else { b32 };
                Ok(Body::new(Op::Match { all: *kind == "all", wide, p })
                    .d(d)
                    .a(self.src(a, class)?)
                    .b(self.src(mask, b32)?))
            }
            ("redux", ["sync", op, ty @ ("u32" | "s32" | "b32")]) => {
                let [d, a, mask] = o else { return self.unknown() };
                let op = match *op {
                    "add" => AtomOp::Add,
                    "min" => AtomOp::Min,
                    "max" => AtomOp::Max,
                    "and" => AtomOp::And,
                    "or" => AtomOp::Or,
                    "xor" => AtomOp::Xor,
                    _ => return self.unknown(),
                };
                Ok(Body::new(Op::Redux { op, signed: *ty == "s32" })
                    .d(self.dst(d, b32)?)
                    .a(self.src(a, b32)?)
                    .b(self.src(mask, b32)?))
            }
            ("elect", ["sync"]) => {
                let [Operand::Pair(d, p), mask] = o else { return self.unknown() };
                let p = self.pred_dst(p)?;
                Ok(Body::new(Op::Elect { p }).d(self.dst(d, b32)?).b(self.src(mask, b32)?))
            }
            _ => self.unknown(),
        }
    }

    fn barrier(&mut self, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let b32 = RegClass::B32;
        let m: Vec<&str> = m.iter().copied().filter(|w| *w != "aligned" && *w != "cta").collect();
        match &m[..] {
            ["warp", "sync"] => {
                let [mask] = o else { return self.unknown() };
                Ok(Body::new(Op::BarWarp).b(self.src(mask, b32)?))
            }
            [kind @ ("sync" | "arrive")] => {
                let (id, count) = match o {
                    [id] => (self.src(id, b32)?, NONE),
                    [id, count] => (self.src(id, b32)?, self.src(count, b32)?),
                    _ => return self.unknown(),
                };
                let kind = if *kind == "sync" { BarrierKind::Sync } else { BarrierKind::Arrive };
                Ok(Body::new(Op::Barrier { kind, p_negated: false }).a(id).b(count).c(NONE))
            }
            ["red", kind, _] => {
                let kind = match *kind {
                    "popc" => BarrierKind::Popc,
                    "and" => BarrierKind::And,
                    "or" => BarrierKind::Or,
                    _ => return self.unknown(),
                };
                let (id, count, p) = match o {
                    [_, id, p] => (self.src(id, b32)?, NONE, p),
                    [_, id, count, p] => (self.src(id, b32)?, self.src(count, b32)?, p),
                    _ => return self.unknown(),
                };
                let (p, p_negated) = self.pred(p)?;
                let d = match kind {
                    BarrierKind::Popc => self.dst(&o[0], b32)?,
                    _ => self.pred_dst(&o[0])?,
                };
                Ok(Body::new(Op::Barrier { kind, p_negated }).d(d).a(id).b(count).c(p))
            }
            _ => self.unknown(),
        }
    }

    fn cp_async(&mut self, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        match m {
            ["async", "commit_group"] => return Ok(Body::new(Op::CpCommit)),
            ["async", "wait_all"] => return Ok(Body::new(Op::CpWait { all: true, groups: 0 })),
            ["async", "wait_group"] => {
                let [Operand::Int(groups)] = o else { return self.unknown() };
                return Ok(Body::new(Op::CpWait { all: false, groups: *groups as u32 }));
            }
            ["async", "ca" | "cg", "shared" | "shared::cta", "global", hints @ ..]
                if hints.iter().all(|h| h.starts_with("L2::")) => {}
            _ => return self.unknown(),
        }
        let hint = m.contains(&"L2::cache_hint") as usize;
        let [to, from, Operand::Int(bytes), rest @ ..] = o else { return self.unknown() };
        let bytes = *bytes as u8;
        if !matches!(bytes, 4 | 8 | 16) || (m[1] == "cg" && bytes != 16) {
            return self.error(format!("copy of {bytes} bytes"));
        }
        let rest = &rest[..rest.len() - hint.min(rest.len())];
        let mut size = NONE;
        let mut ignore = (NONE, false);
        match rest {
            [] => {}
            [p @ (Operand::Not(_) | Operand::Reg(_))] if self.is_pred(p) => {
                ignore = self.pred(p)?
            }
            [bytes] => size = self.src(bytes, RegClass::B32)?,
            _ => return self.unknown(),
        }
        let (d, wide_d, d_offset) = self.address(to)?;
        let (a, wide_a, a_offset) = self.address(from)?;
        let (ignore, ignore_negated) = ignore;
        let op = Op::CpAsync { bytes, wide_d, wide_a, d_offset, a_offset, ignore, ignore_negated };
        Ok(Body::new(op).d(d).a(a).b(size))
    }

    fn is_pred(&self, operand: &Operand) -> bool {
        match operand {
            Operand::Not(inner) => self.is_pred(inner),
            other => self.class_of(other) == Some(RegClass::Pred),
        }
    }

    fn matrix(&mut self, name: &str, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let b32 = RegClass::B32;
        if name == "movmatrix" {
            let ["sync", "aligned", "m8n8", "trans", "b16"] = m else { return self.unknown() };
            let body = self.two(o, Ty::U32, Op::MovMatrix)?;
            return Ok(body);
        }
        let (count, trans) = match m {
            ["sync", "aligned", "m8n8", count, rest @ .., "shared" | "shared::cta", "b16"] => {
                let count = match *count {
                    "x1" => 1,
                    "x2" => 2,
                    "x4" => 4,
                    _ => return self.unknown(),
                };
                match rest {
                    [] => (count, false),
                    ["trans"] => (count, true),
                    _ => return self.unknown(),
                }
            }
            _ => return self.unknown(),
        };
        let [x, y] = o else { return self.unknown() };
        let (data, address) = if name == "ldmatrix" { (x, y) } else { (y, x) };
        let parts = self.vector(data, count)?;
        let rows = parts.iter().map(|p| self.dst(p, b32)).collect::<Result<Vec<_>, _>>()?;
        let list = self.list(&rows);
        let (a, wide_address, offset) = self.address(address)?;
        let op = if name == "ldmatrix" {
            Op::Ldmatrix { count, trans, wide_address, offset }
        } else {
            Op::Stmatrix { count, trans, wide_address, offset }
        };
        Ok(Body::new(op).d(list).a(a))
    }

    fn mma(&mut self, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        let (shape, [nd, na, nb, nc]) = match m {
            [
                "sync",
                "aligned",
                "m16n8k16",
                "row",
                "col",
                "f32",
                ab @ ("bf16" | "f16"),
                ab2,
                "f32",
            ] if ab == ab2 => (MmaShape::K16 { bf16: *ab == "bf16" }, [4, 4, 2, 4]),
            [
                "sync",
                "aligned",
                "m16n8k8",
                "row",
                "col",
                "f32",
                ab @ ("bf16" | "f16"),
                ab2,
                "f32",
            ] if ab == ab2 => (MmaShape::K8 { bf16: *ab == "bf16" }, [4, 2, 1, 4]),
            ["sync", "aligned", "m16n8k16", "row", "col", "f16", "f16", "f16", "f16"] => {
                (MmaShape::K16HalfAcc, [2, 4, 2, 2])
            }
            [
                "sync",
                "aligned",
                k @ ("m16n8k32" | "m16n8k16"),
                "row",
                "col",
                sat @ ..,
                "s32",
                a,
                b,
                "s32",
            ] if matches!(*a, "s8" | "u8")
                && matches!(*b, "s8" | "u8")
                && matches!(sat, [] | ["satfinite"]) =>
            {
                let (a_signed, b_signed, sat) = (*a == "s8", *b == "s8", !sat.is_empty());
                if *k == "m16n8k32" {
                    (MmaShape::K32Int { a_signed, b_signed, sat }, [4, 4, 2, 4])
                } else {
                    (MmaShape::K16Int { a_signed, b_signed, sat }, [4, 2, 1, 4])
                }
            }
            _ => return self.unknown(),
        };
        let [d, a, b, c] = o else { return self.unknown() };
        let mut starts = [0; 4];
        for (i, (operand, count)) in [(d, nd), (a, na), (b, nb), (c, nc)].into_iter().enumerate() {
            let parts = self.vector(operand, count)?;
            let mut rows = Vec::new();
            for part in parts {
                let row = if i == 0 {
                    self.dst(part, RegClass::B32)?
                } else {
                    self.src(part, RegClass::B32)?
                };
                rows.push(row);
            }
            starts[i] = self.list(&rows);
        }
        Ok(Body { op: Op::Mma(shape), rows: starts })
    }

    fn branch(&mut self, name: &str, m: &[&str], o: &[Operand]) -> Result<Body, ParseError> {
        if name == "bra" {
            if !matches!(m, [] | ["uni"]) {
                return self.unknown();
            }
            let [Operand::Name(label)] = o else { return self.unknown() };
            return Ok(Body::new(Op::Bra).d(self.label(label)?));
        }
        if !matches!(m, ["idx"] | ["idx", "uni"]) {
            return self.unknown();
        }
        let [index, Operand::Name(list)] = o else { return self.unknown() };
        let Some(labels) = self.function.branch_targets.get(list) else {
            return self.error(format!("no .branchtargets {list}"));
        };
        let mut targets = vec![labels.len() as u32];
        for label in labels {
            targets.push(self.label(label)?);
        }
        let list = self.list(&targets);
        Ok(Body::new(Op::Brx).d(list).a(self.src(index, RegClass::B32)?))
    }

    fn label(&self, name: &str) -> Result<u32, ParseError> {
        match self.function.labels.get(name) {
            Some(&target) => Ok(target as u32),
            None => self.error(format!("no label {name}")),
        }
    }
}

struct MemoryWords {
    space: Space,
    param: bool,
    count: u8,
    ty: Ty,
    hint: bool,
    volatile: bool,
}

/// An instruction without its guard.
struct Body {
    op: Op,
    rows: [u32; 4],
}

impl Body {
    fn new(op: Op) -> Body {
        Body { op, rows: [0; 4] }
    }

    fn op(self, op: Op) -> Body {
        Body { op, ..self }
    }

    fn d(mut self, row: u32) -> Body {
        self.rows[0] = row;
        self
    }

    fn a(mut self, row: u32) -> Body {
        self.rows[1] = row;
        self
    }

    fn b(mut self, row: u32) -> Body {
        self.rows[2] = row;
        self
    }

    fn c(mut self, row: u32) -> Body {
        self.rows[3] = row;
        self
    }

    fn swap_ab(mut self) -> Body {
        self.rows.swap(1, 2);
        self
    }
}
