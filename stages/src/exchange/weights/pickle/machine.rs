//! The stack machine: one opcode after the other.

use std::collections::HashMap;

use super::{Id, MAX_DIMENSIONS, MAX_VALUES, PickleError, PickleFault, Storage, Tensor, Value};

pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at which a MARK was set.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// All values, and the one that was pickled.
    pub(super) fn run(bytes: &'a [u8]) -> Result<(Vec<Value<'a>>, Id), PickleError> {
        let mut machine =
            Self { bytes, at: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        loop {
            let at = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok((machine.values, root)),
                Err(fault) => return Err(PickleError { at, fault }),
            }
        }
    }

    /// Executes one opcode; the result if it was STOP.
    fn step(&mut self) -> Result<Option<Id>, PickleFault> {
        let [opcode] = self.array()?;
        match opcode {
            b'.' => return self.pop().map(Some),       // STOP
            0x80 => self.protocol()?,                  // PROTO
            0x95 => drop(self.take(8)?),               // FRAME
            b'(' => self.marks.push(self.stack.len()), // MARK
            b'0' => drop(self.pop()?),                 // POP
            b'1' => drop(self.pop_to_mark()?),         // POP_MARK
            b'2' => {
                let top = self.top()?;
                self.stack.push(top); // DUP
            }
            // NONE, NEWTRUE, NEWFALSE, EMPTY_LIST, EMPTY_SET
            b'N' | 0x88 | 0x89 | b']' | 0x8f => self.push(Value::Opaque)?,
            b'G' => self.skipped(8)?, // BINFLOAT
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?; // BININT
            }
            b'K' => {
                let [value] = self.array()?;
                self.push(Value::Int(value.into()))?; // BININT1
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?; // BININT2
            }
            0x8a => {
                let len = self.length::<1>()?;
                self.long(len)?; // LONG1
            }
            0x8b => {
                let len = self.length::<4>()?;
                self.long(len)?; // LONG4
            }
            b'X' => self.text::<4>()?,                // BINUNICODE
            0x8c => self.text::<1>()?,                // SHORT_BINUNICODE
            0x8d => self.text::<8>()?,                // BINUNICODE8
            b'C' | b'U' => self.skipped_text::<1>()?, // SHORT_BINBYTES, SHORT_BINSTRING
            b'B' | b'T' => self.skipped_text::<4>()?, // BINBYTES, BINSTRING
            0x8e | 0x96 => self.skipped_text::<8>()?, // BINBYTES8, BYTEARRAY8
            b'q' => {
                let [key] = self.array()?;
                self.memoize(key.into())?; // BINPUT
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.memoize(key)?; // LONG_BINPUT
            }
            0x94 => self.memoize(self.memo.len() as u32)?, // MEMOIZE
            b'h' => {
                let [key] = self.array()?;
                self.recall(key.into())?; // BINGET
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?; // LONG_BINGET
            }
            b')' => self.push(Value::Tuple(Vec::new()))?, // EMPTY_TUPLE
            0x85..=0x87 => {
                let len = usize::from(opcode - 0x84);
                let items = self.pop_many(len)?;
                self.push(Value::Tuple(items))?; // TUPLE1, TUPLE2, TUPLE3
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))?; // TUPLE
            }
            0x91 => {
                self.pop_to_mark()?;
                self.push(Value::Opaque)?; // FROZENSET
            }
            b'}' => self.push(Value::Dict(Vec::new()))?, // EMPTY_DICT
            b's' => {
                let pair = self.pop_many(2)?;
                self.set_items(&pair)?; // SETITEM
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)?; // SETITEMS
            }
            b'a' => {
                self.pop()?;
                self.opaque_on_top("a list")?; // APPEND
            }
            b'e' | 0x90 => {
                self.pop_to_mark()?;
                self.opaque_on_top("a list or set")?; // APPENDS, ADDITEMS
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(module, name))?; // GLOBAL
            }
            0x93 => self.stack_global()?, // STACK_GLOBAL
            b'Q' => self.storage()?,      // BINPERSID
            b'R' => self.reduce()?,       // REDUCE
            0x81 => {
                self.pop_many(2)?;
                self.push(Value::Opaque)?; // NEWOBJ
            }
            0x92 => {
                self.pop_many(3)?;
                self.push(Value::Opaque)?; // NEWOBJ_EX
            }
            b'b' => {
                // BUILD: the attributes of an object, for a state dict its `_metadata`.
                self.pop()?;
                self.top()?;
            }
            other => return Err(PickleFault::Opcode(other)),
        }
        Ok(None)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], PickleFault> {
        let taken = self.bytes[self.at..].get(..len).ok_or(PickleFault::Truncated)?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleFault> {
        let taken = self.bytes[self.at..].first_chunk().ok_or(PickleFault::Truncated)?;
        self.at += N;
        Ok(*taken)
    }

    /// A length of N bytes. One that no memory holds is longer than the pickle as well.
    fn length<const N: usize>(&mut self) -> Result<usize, PickleFault> {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&self.array::<N>()?);
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| PickleFault::Truncated)
    }

    fn line(&mut self) -> Result<&'a str, PickleFault> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&byte| byte == b'\n').ok_or(PickleFault::Truncated)?;
        self.at += len + 1;
        str::from_utf8(&rest[..len]).map_err(|_| PickleFault::Text)
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), PickleFault> {
        if self.values.len() == MAX_VALUES {
            return Err(PickleFault::TooManyValues);
        }
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
        Ok(())
    }

    /// Values above the last mark.
    fn room(&self) -> usize {
        self.stack.len() - self.marks.last().unwrap_or(&0)
    }

    fn pop_many(&mut self, len: usize) -> Result<Vec<Id>, PickleFault> {
        if self.room() < len {
            return Err(PickleFault::EmptyStack);
        }
        Ok(self.stack.split_off(self.stack.len() - len))
    }

    fn pop(&mut self) -> Result<Id, PickleFault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn top(&self) -> Result<Id, PickleFault> {
        match self.stack.last() {
            Some(&top) if self.room() > 0 => Ok(top),
            _ => Err(PickleFault::EmptyStack),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, PickleFault> {
        let mark = self.marks.pop().ok_or(PickleFault::NoMark)?;
        Ok(self.stack.split_off(mark))
    }

    fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    fn protocol(&mut self) -> Result<(), PickleFault> {
        match self.array()? {
            [0..=5] => Ok(()),
            [newer] => Err(PickleFault::Protocol(newer)),
        }
    }

    /// An integer of `len` bytes, two's complement. One that 64 bits do not hold is no size of anything here.
    fn long(&mut self, len: usize) -> Result<(), PickleFault> {
        let bytes = self.take(len)?;
        let sign = if bytes.last().is_some_and(|&byte| byte >= 0x80) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        self.push(match wide.get_mut(..len) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(wide))
            }
            None => Value::Opaque,
        })
    }

    fn text<const N: usize>(&mut self) -> Result<(), PickleFault> {
        let len = self.length::<N>()?;
        let text = str::from_utf8(self.take(len)?).map_err(|_| PickleFault::Text)?;
        self.push(Value::Text(text))
    }

    fn skipped_text<const N: usize>(&mut self) -> Result<(), PickleFault> {
        let len = self.length::<N>()?;
        self.skipped(len)
    }

    fn skipped(&mut self, len: usize) -> Result<(), PickleFault> {
        self.take(len)?;
        self.push(Value::Opaque)
    }

    fn memoize(&mut self, key: u32) -> Result<(), PickleFault> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), PickleFault> {
        let id = *self.memo.get(&key).ok_or(PickleFault::Memo(key))?;
        self.stack.push(id);
        Ok(())
    }

    /// Adds keys and values, in turns, to the dictionary on top.
    fn set_items(&mut self, items: &[Id]) -> Result<(), PickleFault> {
        let top = self.top()?;
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(PickleFault::Expected("a value for every key"));
        };
        match &mut self.values[top as usize] {
            Value::Dict(dict) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Value::Opaque => {}
            _ => return Err(PickleFault::Expected("a dictionary")),
        }
        Ok(())
    }

    fn opaque_on_top(&self, what: &'static str) -> Result<(), PickleFault> {
        match self.value(self.top()?) {
            Value::Opaque => Ok(()),
            _ => Err(PickleFault::Expected(what)),
        }
    }

    fn stack_global(&mut self) -> Result<(), PickleFault> {
        let names = self.pop_many(2)?;
        let (&Value::Text(module), &Value::Text(name)) = (self.value(names[0]), self.value(names[1])) else {
            return Err(PickleFault::Expected("the name of a class"));
        };
        self.push(Value::Global(module, name))
    }

    /// The persistent id of a storage: ("storage", class, key, device, number of elements).
    fn storage(&mut self) -> Result<(), PickleFault> {
        const WANTED: PickleFault = PickleFault::Expected("a storage");
        let id = self.pop()?;
        let Value::Tuple(parts) = self.value(id) else { return Err(WANTED) };
        let &[kind, class, key, _device, len] = &parts[..] else { return Err(WANTED) };
        let storage = match [kind, class, key, len].map(|part| self.value(part)) {
            [Value::Text("storage"), &Value::Global(_, class), &Value::Text(key), &Value::Int(len)] => {
                Storage { class, key, len: u64::try_from(len).map_err(|_| WANTED)? }
            }
            _ => return Err(WANTED),
        };
        self.push(Value::Storage(storage))
    }

    /// Calls what is below the arguments: only if it is one of three functions that are known here.
    fn reduce(&mut self) -> Result<(), PickleFault> {
        let call = self.pop_many(2)?;
        let Value::Tuple(arguments) = self.value(call[1]) else {
            return Err(PickleFault::Expected("a tuple of arguments"));
        };
        let result = match self.value(call[0]) {
            Value::Global("collections", "OrderedDict") if arguments.is_empty() => Value::Dict(Vec::new()),
            Value::Global("torch._utils", "_rebuild_tensor_v2") => Value::Tensor(self.tensor(arguments)?),
            Value::Global("torch._utils", "_rebuild_parameter") => match arguments.first().map(|&id| self.value(id)) {
                Some(Value::Tensor(tensor)) => Value::Tensor(tensor.clone()),
                _ => return Err(PickleFault::Expected("a tensor")),
            },
            Value::Global(..) | Value::Opaque => Value::Opaque,
            _ => return Err(PickleFault::Expected("something to call")),
        };
        self.push(result)
    }

    /// (storage, offset, shape, strides, ..).
    fn tensor(&self, arguments: &[Id]) -> Result<Tensor<'a>, PickleFault> {
        let &[storage, offset, shape, strides, ..] = arguments else {
            return Err(PickleFault::Expected("storage, offset, shape and strides of a tensor"));
        };
        let &Value::Storage(storage) = self.value(storage) else { return Err(PickleFault::Expected("a storage")) };
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        if shape.len() != strides.len() {
            return Err(PickleFault::Expected("a stride for each dimension"));
        }
        Ok(Tensor { storage, offset: self.size(offset)?, shape, strides })
    }

    fn sizes(&self, id: Id) -> Result<Vec<u64>, PickleFault> {
        match self.value(id) {
            // Many tensors may share one tuple: a long one is not copied for each.
            Value::Tuple(sizes) if sizes.len() > MAX_DIMENSIONS => Err(PickleFault::Dimensions(sizes.len())),
            Value::Tuple(sizes) => sizes.iter().map(|&size| self.size(size)).collect(),
            _ => Err(PickleFault::Expected("a tuple of sizes")),
        }
    }

    fn size(&self, id: Id) -> Result<u64, PickleFault> {
        match *self.value(id) {
            Value::Int(size) => u64::try_from(size).map_err(|_| PickleFault::Expected("a size of at least 0")),
            _ => Err(PickleFault::Expected("a size")),
        }
    }
}
