//! The guest's code in the merged module. Loads and stores of Extism blocks are opened up where they are called: a body
//! moves 8 bytes at a time through them, so a call for each would cost more than all else. `memory.grow` and
//! `memory.size` become the kernel's. Invariant: each sequence does what the function of its name in `kernel.wat` does.

use wasm_encoder::reencode::{Error as Reencoding, Reencode};
use wasm_encoder::{BlockType, CodeSection, Encode, Function, InstructionSink, MemArg, ValType};
use wasmparser::{FunctionBody, Operator};

use super::ModuleError;
use super::kernel::{GROW, INPUT_AT, INPUT_FENCE, INPUT_LENGTH, KERNEL_MEMORY, PAGES};
use super::merge::{GuestPart, Plan};

/// Calls that are opened up in one module; any further one stays a call. Bounds how much a hostile module can swell:
/// a sequence has up to 30 bytes, a call 2. Large Go guests have some dozens.
const OPENED_MAX: usize = 65_536;
/// Locals of one function, parameters included, and bytes of its body: bounds of the validator.
const LOCALS_MAX: u64 = 50_000;
const BODY_BYTES_MAX: usize = 7_654_321;
/// What opened calls keep their arguments in: an offset, a value of 8 bytes, a byte.
const SCRATCH: [(u32, ValType); 2] = [(2, ValType::I64), (1, ValType::I32)];
const SCRATCH_LOCALS: u64 = 3;

/// One of the kernel's functions that are opened up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    LoadByte,
    LoadWord,
    StoreByte,
    StoreWord,
    InputByte,
    InputWord,
}

impl Access {
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "load_u8" => Self::LoadByte,
            "load_u64" => Self::LoadWord,
            "store_u8" => Self::StoreByte,
            "store_u64" => Self::StoreWord,
            "input_load_u8" => Self::InputByte,
            "input_load_u64" => Self::InputWord,
            _ => return None,
        })
    }

    /// Does what a call would: arguments from the stack, result to the stack. `scratch` is the first scratch local.
    fn encode(self, code: &mut InstructionSink<'_>, scratch: u32, plan: &Plan<'_>) {
        let (offset, word, byte) = (scratch, scratch + 1, scratch + 2);
        match self {
            Self::LoadByte => {
                code.local_set(offset);
                address(code, offset);
                code.i32_load8_u(KERNEL_BYTES);
            }
            Self::LoadWord => {
                code.local_set(offset);
                address(code, offset);
                code.i64_load(KERNEL_BYTES);
            }
            Self::StoreByte => {
                code.local_set(byte).local_set(offset);
                address(code, offset);
                code.local_get(byte).i32_store8(KERNEL_BYTES);
            }
            Self::StoreWord => {
                code.local_set(word).local_set(offset);
                address(code, offset);
                code.local_get(word).i64_store(KERNEL_BYTES);
            }
            Self::InputByte => {
                within_input(code, offset, plan, INPUT_LENGTH, ValType::I32);
                code.i32_load8_u(KERNEL_BYTES).else_().i32_const(0).end();
            }
            Self::InputWord => {
                within_input(code, offset, plan, INPUT_FENCE, ValType::I64);
                code.i64_load(KERNEL_BYTES).else_().i64_const(0).end();
            }
        }
    }
}

/// Blocks lie anywhere: no alignment is promised.
const KERNEL_BYTES: MemArg = MemArg { offset: 0, align: 0, memory_index: KERNEL_MEMORY };

/// The offset as an address; one beyond 32 bits traps instead of wrapping to some other block.
fn address(code: &mut InstructionSink<'_>, offset: u32) {
    code.local_get(offset).i64_const(32).i64_shr_u().i64_const(0).i64_ne();
    code.if_(BlockType::Empty).unreachable().end();
    code.local_get(offset).i32_wrap_i64();
}

/// Opens an `if` for offsets below the global `end`, and leaves the address in the input.
fn within_input(code: &mut InstructionSink<'_>, offset: u32, plan: &Plan<'_>, end: &str, result: ValType) {
    code.local_tee(offset).global_get(plan.kernel_global(end)).i64_lt_u();
    code.if_(BlockType::Result(result));
    code.global_get(plan.kernel_global(INPUT_AT)).local_get(offset).i32_wrap_i64().i32_add();
}

impl Reencode for GuestPart<'_> {
    type Error = ModuleError;

    fn function_index(&mut self, index: u32) -> Result<u32, Reencoding<ModuleError>> {
        Ok(self.plan.function(index))
    }

    fn parse_function_body(
        &mut self,
        code: &mut CodeSection,
        body: FunctionBody<'_>,
    ) -> Result<(), Reencoding<ModuleError>> {
        let signature = self.plan.guest.signature(self.next_function).expect("validated: each body has a type");
        self.next_function += 1;
        let mut locals = Vec::new();
        let mut local_count = signature.params().len() as u64;
        for declared in body.get_locals_reader()? {
            let (repeated, ty) = declared?;
            local_count += u64::from(repeated);
            locals.push((repeated, self.val_type(ty)?));
        }
        let first_scratch = u32::try_from(local_count).expect("validated: at most 50,000 locals");
        let has_room = local_count + SCRATCH_LOCALS <= LOCALS_MAX;

        let opened_before = self.opened;
        let mut bytes = Vec::with_capacity(body.range().len());
        let mut operators = body.get_operators_reader()?;
        while !operators.eof() {
            let operator = operators.read()?;
            match operator {
                Operator::Call { function_index } => match self.plan.access(function_index) {
                    Some(access) if has_room && self.opened < OPENED_MAX => {
                        self.opened += 1;
                        access.encode(&mut InstructionSink::new(&mut bytes), first_scratch, self.plan);
                    }
                    _ => self.instruction(operator)?.encode(&mut bytes),
                },
                Operator::MemorySize { .. } => {
                    InstructionSink::new(&mut bytes).global_get(self.plan.kernel_global(PAGES));
                }
                Operator::MemoryGrow { .. } => {
                    InstructionSink::new(&mut bytes).call(self.plan.kernel_function(GROW));
                }
                _ => self.instruction(operator)?.encode(&mut bytes),
            }
        }
        if self.opened > opened_before {
            locals.extend(SCRATCH);
        }
        let mut function = Function::new(locals);
        function.raw(bytes);
        if function.byte_len() > BODY_BYTES_MAX {
            return Err(Reencoding::UserError(ModuleError::Full("bytes in one function")));
        }
        code.function(&function);
        Ok(())
    }
}
