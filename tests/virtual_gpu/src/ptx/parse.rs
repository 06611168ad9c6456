//! Tokens -> statements: declarations, labels, and instructions with typed operands.

use std::collections::HashMap;

use super::lexer::{Spanned, Token, lex};
use super::{ModuleVariable, ParamInfo, ParamType, ParseError};

/// The class of a register: how many bits it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RegClass {
    Pred,
    B16,
    B32,
    B64,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// Index into `Function::registers`.
    Reg(usize),
    Int(i128),
    F32(u32),
    F64(u64),
    /// A variable, a label or a special register, by name.
    Name(String),
    Vector(Vec<Operand>),
    /// `[base + offset]`.
    Memory(Box<Operand>, i64),
    /// `!p`.
    Not(Box<Operand>),
    /// `d|p`.
    Pair(Box<Operand>, Box<Operand>),
    /// `_`.
    Sink,
}

#[derive(Debug, Clone)]
pub struct Statement {
    /// Predicate register and whether it is negated.
    pub guard: Option<(usize, bool)>,
    /// `ld`, `global`, `v4`, `u32`.
    pub opcode: Vec<String>,
    pub operands: Vec<Operand>,
    pub line: u32,
    /// File index and line of the last `.loc`.
    pub source: Option<(u32, u32)>,
}

impl Statement {
    pub fn opcode_text(&self) -> String {
        self.opcode.join(".")
    }
}

/// Where a variable lies: an offset in its space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Shared(u32),
    /// The dynamic shared memory: behind all static variables.
    DynamicShared,
    Local(u32),
    /// Index into `Parsed::variables`.
    Module(usize),
    Param(usize),
}

#[derive(Debug, Default)]
pub struct Function {
    pub name: String,
    pub line: u32,
    pub params: Vec<ParamInfo>,
    pub param_bytes: usize,
    pub registers: Vec<RegClass>,
    pub statements: Vec<Statement>,
    /// Label -> index of the statement behind it.
    pub labels: HashMap<String, usize>,
    pub branch_targets: HashMap<String, Vec<String>>,
    pub variables: HashMap<String, Place>,
    pub shared_bytes: u32,
    pub dynamic_align: u32,
    pub local_bytes: u32,
    pub max_threads: Option<[u32; 3]>,
    pub required_threads: Option<[u32; 3]>,
}

#[derive(Debug, Default)]
pub struct Parsed {
    pub kernels: Vec<Function>,
    pub variables: Vec<ModuleVariable>,
    pub names: HashMap<String, Place>,
    pub files: HashMap<u32, String>,
    /// Module-level shared variables: size and alignment, laid out first in every kernel.
    pub shared_bytes: u32,
    pub dynamic_align: u32,
}

pub fn parse(text: &str) -> Result<Parsed, ParseError> {
    let tokens = lex(text)?;
    let mut parser = Parser { tokens: &tokens, at: 0, parsed: Parsed::default() };
    parser.module()?;
    Ok(parser.parsed)
}

/// A `.shared`, `.global`, `.const` or `.local` declaration.
struct Variable {
    name: String,
    align: u32,
    size: Option<u32>,
    bytes: Option<Vec<u8>>,
}

struct Parser<'a> {
    tokens: &'a [Spanned],
    at: usize,
    parsed: Parsed,
}

impl Parser<'_> {
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |t| t.line)
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T, ParseError> {
        Err(ParseError::new(self.line(), message))
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|t| &t.token)
    }

    fn is_punct(&self, c: char) -> bool {
        self.peek() == Some(&Token::Punct(c))
    }

    fn eat(&mut self, c: char) -> bool {
        let hit = self.is_punct(c);
        self.at += hit as usize;
        hit
    }

    fn expect(&mut self, c: char) -> Result<(), ParseError> {
        if self.eat(c) {
            return Ok(());
        }
        self.error(format!("expected {c:?}, found {:?}", self.peek()))
    }

    fn peek_word(&self) -> Option<&str> {
        match self.peek() {
            Some(Token::Word(word)) => Some(word),
            _ => None,
        }
    }

    fn word(&mut self) -> Result<String, ParseError> {
        match self.peek() {
            Some(Token::Word(word)) => {
                let word = word.clone();
                self.at += 1;
                Ok(word)
            }
            other => self.error(format!("expected a name, found {other:?}")),
        }
    }

    fn int(&mut self) -> Result<i128, ParseError> {
        let negative = self.eat('-');
        match self.peek() {
            Some(Token::Int(value)) => {
                let value = *value;
                self.at += 1;
                Ok(if negative { -value } else { value })
            }
            other => self.error(format!("expected an integer, found {other:?}")),
        }
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.at < self.tokens.len() && self.tokens[self.at].line == line {
            self.at += 1;
        }
    }

    fn skip_braces(&mut self) -> Result<(), ParseError> {
        self.expect('{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.peek() {
                Some(Token::Punct('{')) => depth += 1,
                Some(Token::Punct('}')) => depth -= 1,
                None => return self.error("block without an end"),
                _ => {}
            }
            self.at += 1;
        }
        Ok(())
    }

    fn module(&mut self) -> Result<(), ParseError> {
        while let Some(token) = self.peek() {
            let Token::Word(word) = token else {
                return self.error(format!("expected a directive, found {token:?}"));
            };
            match word.as_str() {
                ".version" | ".target" | ".address_size" | ".loc" => self.skip_line(),
                ".file" => self.file()?,
                ".section" => {
                    while !self.is_punct('{') {
                        if self.peek().is_none() {
                            return self.error("section without a body");
                        }
                        self.at += 1;
                    }
                    self.skip_braces()?;
                }
                ".visible" | ".weak" | ".extern" | ".common" => self.at += 1,
                ".entry" => self.entry()?,
                ".func" => return self.error("a device function that was not inlined (.func)"),
                ".shared" => {
                    let variable = self.variable()?;
                    self.module_shared(variable)?;
                }
                ".global" | ".const" => {
                    let variable = self.variable()?;
                    self.module_variable(variable)?;
                }
                other => return self.error(format!("directive {other}")),
            }
        }
        Ok(())
    }

    fn file(&mut self) -> Result<(), ParseError> {
        let line = self.line();
        self.at += 1;
        let index = self.int()? as u32;
        if let Some(Token::Text(name)) = self.peek() {
            let name = name.clone();
            self.parsed.files.insert(index, name);
        }
        while self.at < self.tokens.len() && self.tokens[self.at].line == line {
            self.at += 1;
        }
        Ok(())
    }

    fn module_shared(&mut self, variable: Variable) -> Result<(), ParseError> {
        let place = match variable.size {
            None => {
                self.parsed.dynamic_align = self.parsed.dynamic_align.max(variable.align);
                Place::DynamicShared
            }
            Some(size) => {
                let offset = self.parsed.shared_bytes.next_multiple_of(variable.align);
                self.parsed.shared_bytes = offset + size;
                Place::Shared(offset)
            }
        };
        self.parsed.names.insert(variable.name, place);
        Ok(())
    }

    fn module_variable(&mut self, variable: Variable) -> Result<(), ParseError> {
        let size = match (variable.size, &variable.bytes) {
            (Some(size), _) => size as usize,
            (None, Some(bytes)) => bytes.len(),
            (None, None) => return self.error(format!("{} has no size", variable.name)),
        };
        let initialised = variable.bytes.is_some();
        let mut bytes = variable.bytes.unwrap_or_default();
        bytes.resize(size, 0);
        let place = Place::Module(self.parsed.variables.len());
        self.parsed.names.insert(variable.name.clone(), place);
        let align = variable.align as usize;
        let name = variable.name;
        self.parsed.variables.push(ModuleVariable { name, align, bytes, initialised });
        Ok(())
    }

    /// `.space .align N .type name[dims] = {...};`
    fn variable(&mut self) -> Result<Variable, ParseError> {
        self.at += 1;
        let mut align = None;
        let mut lanes = 1;
        let mut ty = None;
        while let Some(word) = self.peek_word() {
            if !word.starts_with('.') {
                break;
            }
            match word {
                ".align" => {
                    self.at += 1;
                    align = Some(self.int()? as u32);
                    continue;
                }
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                ".attribute" => return self.error("variable with .attribute"),
                other => ty = Some(other.trim_start_matches('.').to_string()),
            }
            self.at += 1;
        }
        let Some(ty) = ty else { return self.error("variable without a type") };
        let Some(element) = type_bytes(&ty) else {
            return self.error(format!("type .{ty}"));
        };
        let name = self.word()?;
        let mut size = Some(element * lanes);
        while self.eat('[') {
            if self.eat(']') {
                size = None;
            } else {
                let count = self.int()? as u32;
                size = size.map(|s| s * count);
                self.expect(']')?;
            }
        }
        let bytes = if self.eat('=') { Some(self.initialiser(&ty, element)?) } else { None };
        self.expect(';')?;
        Ok(Variable { name, align: align.unwrap_or(element * lanes), size, bytes })
    }

    fn initialiser(&mut self, ty: &str, element: u32) -> Result<Vec<u8>, ParseError> {
        let mut bytes = Vec::new();
        let mut depth = 0;
        loop {
            if self.eat('{') {
                depth += 1;
            } else if self.eat('}') {
                depth -= 1;
            } else if !self.eat(',') {
                let negative = self.eat('-');
                let value = match self.peek() {
                    Some(Token::Int(value)) if ty == "f32" => {
                        (*value as f32).to_bits() as i128 * if negative { -1 } else { 1 }
                    }
                    Some(Token::Int(value)) => *value * if negative { -1 } else { 1 },
                    Some(Token::F32(bits)) => *bits as i128,
                    Some(Token::F64(bits)) => *bits as i128,
                    other => return self.error(format!("initialiser {other:?}")),
                };
                self.at += 1;
                bytes.extend_from_slice(&value.to_le_bytes()[..element as usize]);
            }
            if depth == 0 {
                return Ok(bytes);
            }
        }
    }

    fn entry(&mut self) -> Result<(), ParseError> {
        let mut function = Function { line: self.line(), ..Function::default() };
        self.at += 1;
        function.name = self.word()?;
        function.shared_bytes = self.parsed.shared_bytes;
        function.dynamic_align = self.parsed.dynamic_align.max(16);
        if self.eat('(') {
            while !self.eat(')') {
                self.param(&mut function)?;
                self.eat(',');
            }
        }
        loop {
            match self.peek_word() {
                Some(".maxntid") => function.max_threads = Some(self.dims()?),
                Some(".reqntid") => function.required_threads = Some(self.dims()?),
                Some(".minnctapersm" | ".maxnctapersm" | ".maxnreg") => {
                    self.at += 1;
                    self.int()?;
                }
                _ => break,
            }
        }
        if self.eat(';') {
            return Ok(());
        }
        self.body(&mut function)?;
        self.parsed.kernels.push(function);
        Ok(())
    }

    fn dims(&mut self) -> Result<[u32; 3], ParseError> {
        self.at += 1;
        let mut dims = [1; 3];
        for (i, dim) in dims.iter_mut().enumerate() {
            if i > 0 && !self.eat(',') {
                break;
            }
            *dim = self.int()? as u32;
        }
        Ok(dims)
    }

    fn param(&mut self, function: &mut Function) -> Result<(), ParseError> {
        let directive = self.word()?;
        if directive != ".param" {
            return self.error(format!("expected .param, found {directive}"));
        }
        let mut align = None;
        let mut ty = None;
        while let Some(word) = self.peek_word() {
            match word {
                ".align" => {
                    self.at += 1;
                    align = Some(self.int()? as usize);
                    continue;
                }
                ".ptr" | ".global" | ".shared" | ".const" | ".local" => {}
                word if word.starts_with('.') => ty = Some(word[1..].to_string()),
                _ => break,
            }
            self.at += 1;
        }
        let name = self.word()?;
        let Some(ty) = ty else { return self.error(format!("{name} has no type")) };
        let Some(mut size) = type_bytes(&ty).map(|s| s as usize) else {
            return self.error(format!("type .{ty}"));
        };
        let natural = size;
        let mut kind = match ty.as_str() {
            "u8" | "b8" => ParamType::U8,
            "u16" | "b16" => ParamType::U16,
            "u32" | "b32" => ParamType::U32,
            "u64" | "b64" => ParamType::U64,
            "s8" => ParamType::S8,
            "s16" => ParamType::S16,
            "s32" => ParamType::S32,
            "s64" => ParamType::S64,
            "f32" => ParamType::F32,
            "f64" => ParamType::F64,
            other => return self.error(format!("parameter type .{other}")),
        };
        if self.eat('[') {
            size *= self.int()? as usize;
            self.expect(']')?;
            kind = ParamType::Bytes;
        }
        // `.ptr .align N` states the alignment of the pointee, not of the parameter.
        let align = if kind == ParamType::Bytes { align.unwrap_or(natural) } else { natural };
        let offset = function.param_bytes.next_multiple_of(align);
        function.param_bytes = offset + size;
        function.variables.insert(name.clone(), Place::Param(function.params.len()));
        function.params.push(ParamInfo { name, offset, size, align, ty: kind });
        Ok(())
    }

    fn body(&mut self, function: &mut Function) -> Result<(), ParseError> {
        self.expect('{')?;
        let mut scopes: Vec<HashMap<String, usize>> = vec![HashMap::new()];
        let mut source = None;
        while !scopes.is_empty() {
            if self.eat('{') {
                scopes.push(HashMap::new());
                continue;
            }
            if self.eat('}') {
                scopes.pop();
                continue;
            }
            if self.eat(';') {
                continue;
            }
            if self.is_punct('@') {
                let statement = self.statement(&scopes, source)?;
                function.statements.push(statement);
                continue;
            }
            let Some(word) = self.peek_word().map(str::to_string) else {
                return self.error(format!("expected a statement, found {:?}", self.peek()));
            };
            match word.as_str() {
                ".reg" => self.registers(function, &mut scopes)?,
                ".shared" => {
                    let variable = self.variable()?;
                    let Some(size) = variable.size else {
                        return self.error("shared variable without a size inside a function");
                    };
                    let offset = function.shared_bytes.next_multiple_of(variable.align);
                    function.shared_bytes = offset + size;
                    function.variables.insert(variable.name, Place::Shared(offset));
                }
                ".local" => {
                    let variable = self.variable()?;
                    let Some(size) = variable.size else {
                        return self.error("local variable without a size");
                    };
                    let offset = function.local_bytes.next_multiple_of(variable.align);
                    function.local_bytes = offset + size;
                    function.variables.insert(variable.name, Place::Local(offset));
                }
                ".loc" => source = Some(self.loc()?),
                ".pragma" => {
                    while !self.eat(';') {
                        self.at += 1;
                    }
                }
                _ if self.is_label() => self.label(function, word)?,
                other if other.starts_with('.') => {
                    return self.error(format!("directive {other}"));
                }
                _ => {
                    let statement = self.statement(&scopes, source)?;
                    function.statements.push(statement);
                }
            }
        }
        Ok(())
    }

    fn is_label(&self) -> bool {
        self.tokens.get(self.at + 1).is_some_and(|t| t.token == Token::Punct(':'))
    }

    /// A code label, or a `.branchtargets` list with its label.
    fn label(&mut self, function: &mut Function, name: String) -> Result<(), ParseError> {
        self.at += 2;
        if self.peek_word() != Some(".branchtargets") {
            function.labels.insert(name, function.statements.len());
            return Ok(());
        }
        self.at += 1;
        let mut targets = Vec::new();
        while !self.eat(';') {
            targets.push(self.word()?);
            self.eat(',');
        }
        function.branch_targets.insert(name, targets);
        Ok(())
    }

    fn loc(&mut self) -> Result<(u32, u32), ParseError> {
        let line = self.line();
        self.at += 1;
        let file = self.int()? as u32;
        let source_line = self.int()? as u32;
        while self.at < self.tokens.len() && self.tokens[self.at].line == line {
            self.at += 1;
        }
        Ok((file, source_line))
    }

    fn registers(
        &mut self,
        function: &mut Function,
        scopes: &mut [HashMap<String, usize>],
    ) -> Result<(), ParseError> {
        self.at += 1;
        let ty = self.word()?;
        let class = match ty.as_str() {
            ".pred" => RegClass::Pred,
            ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" | ".b8" | ".u8" | ".s8" => RegClass::B16,
            ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" | ".bf16x2" => RegClass::B32,
            ".b64" | ".u64" | ".s64" | ".f64" => RegClass::B64,
            other => return self.error(format!("register type {other}")),
        };
        let scope = scopes.last_mut().expect("a body has a scope");
        loop {
            let name = self.word()?;
            if self.eat('<') {
                let count = self.int()?;
                self.expect('>')?;
                for i in 0..count {
                    scope.insert(format!("{name}{i}"), function.registers.len());
                    function.registers.push(class);
                }
            } else {
                scope.insert(name, function.registers.len());
                function.registers.push(class);
            }
            if !self.eat(',') {
                break;
            }
        }
        self.expect(';')
    }

    fn statement(
        &mut self,
        scopes: &[HashMap<String, usize>],
        source: Option<(u32, u32)>,
    ) -> Result<Statement, ParseError> {
        let mut guard = None;
        if self.eat('@') {
            let negated = self.eat('!');
            let name = self.word()?;
            let Some(reg) = lookup(scopes, &name) else {
                return self.error(format!("unknown predicate {name}"));
            };
            guard = Some((reg, negated));
        }
        let line = self.line();
        let opcode = self.word()?.split('.').map(str::to_string).collect();
        let mut operands = Vec::new();
        while !self.eat(';') {
            operands.push(self.operand(scopes)?);
            if !self.eat(',') && !self.is_punct(';') {
                return self.error(format!("expected ',' or ';', found {:?}", self.peek()));
            }
        }
        Ok(Statement { guard, opcode, operands, line, source })
    }

    fn operand(&mut self, scopes: &[HashMap<String, usize>]) -> Result<Operand, ParseError> {
        if self.eat('!') {
            return Ok(Operand::Not(Box::new(self.operand(scopes)?)));
        }
        if self.eat('{') {
            let mut parts = Vec::new();
            while !self.eat('}') {
                parts.push(self.operand(scopes)?);
                self.eat(',');
            }
            return Ok(Operand::Vector(parts));
        }
        if self.eat('[') {
            let base = self.atom(scopes)?;
            let mut offset = 0i64;
            while !self.eat(']') {
                if self.eat('+') || self.is_punct('-') {
                    offset += self.int()? as i64;
                } else {
                    return self.error(format!("address with {:?}", self.peek()));
                }
            }
            return Ok(Operand::Memory(Box::new(base), offset));
        }
        let first = self.atom(scopes)?;
        if self.eat('|') {
            let second = self.atom(scopes)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        if self.is_punct('+')
            && let Operand::Name(_) = first
        {
            return self.error("an address expression outside brackets");
        }
        Ok(first)
    }

    fn atom(&mut self, scopes: &[HashMap<String, usize>]) -> Result<Operand, ParseError> {
        let negative = self.eat('-');
        let operand = match self.peek() {
            Some(Token::Int(value)) => Operand::Int(if negative { -value } else { *value }),
            Some(Token::F32(bits)) => Operand::F32(bits ^ ((negative as u32) << 31)),
            Some(Token::F64(bits)) => Operand::F64(bits ^ ((negative as u64) << 63)),
            Some(Token::Word(word)) if word == "_" => Operand::Sink,
            Some(Token::Word(word)) => match lookup(scopes, word) {
                Some(reg) => Operand::Reg(reg),
                None => Operand::Name(word.clone()),
            },
            other => return self.error(format!("operand {other:?}")),
        };
        self.at += 1;
        Ok(operand)
    }
}

fn lookup(scopes: &[HashMap<String, usize>], name: &str) -> Option<usize> {
    scopes.iter().rev().find_map(|scope| scope.get(name).copied())
}

/// The size of a fundamental type.
pub fn type_bytes(ty: &str) -> Option<u32> {
    Some(match ty {
        "u8" | "s8" | "b8" => 1,
        "u16" | "s16" | "b16" | "f16" | "bf16" => 2,
        "u32" | "s32" | "b32" | "f32" | "f16x2" | "bf16x2" | "tf32" => 4,
        "u64" | "s64" | "b64" | "f64" => 8,
        "b128" => 16,
        _ => return None,
    })
}
