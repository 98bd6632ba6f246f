//! One module out of two: the guest's and the kernel. Owns the order of indices in the result: imports that are kept,
//! the guest's functions, the kernel's, the start; types and globals of the guest before the kernel's; memory 0 the
//! guest's, memory 1 the kernel's. Invariant: every index of either module goes through [`Plan`].

use wasm_encoder::reencode::{Error as Reencoding, Reencode};
use wasm_encoder::{
    CodeSection, ConstExpr, DataCountSection, DataSection, ElementSection, EntityType, ExportKind, ExportSection,
    Function, FunctionSection, GlobalSection, ImportSection, MemorySection, MemoryType, Module, NameMap, NameSection,
    StartSection, TableSection, TypeSection,
};
use wasmparser::{ExternalKind, ValType};

use super::check::check;
use super::imports::{Known, Provider};
use super::kernel::{self, Kernel};
use super::open_code::Access;
use super::sections::Sections;
use super::{INITIALIZE, Merged, ModuleError, ModuleOptions, PAGE_BYTES, PRESIZE_BYTES, StartExport};

/// What a module may have of each kind of thing: the bound of the validator that wasmtime has, too.
const INDICES_MAX: usize = 1_000_000;
/// Pages that 32 bits address.
const PAGES_MAX: u64 = 65_536;
/// Exports that start a runtime. Nobody calls them by name.
const HASKELL: &str = "hs_init";
const CONSTRUCTORS: &str = "__wasm_call_ctors";
const REACTOR: &str = "_initialize";
const STARTS: [&str; 3] = [HASKELL, CONSTRUCTORS, REACTOR];

/// Makes a published module one that can be compiled: what it imports of Extism's memory functions is inside, its
/// memory is presized and keeps to the limit.
///
/// # Errors
/// The module may not be a seed; the error says why. Bytes of any kind give an error, never a panic.
pub fn merge(wasm: &[u8], options: &ModuleOptions) -> Result<Merged, ModuleError> {
    let guest = check(wasm, options)?;
    let plan = Plan::new(&guest, Kernel::embedded(), options)?;
    plan.merged().map_err(|error| match error {
        Reencoding::UserError(error) => error,
        Reencoding::ParseError(error) => ModuleError::Invalid(error.to_string()),
        other => ModuleError::Invalid(other.to_string()),
    })
}

/// Where everything of both modules is in the merged one.
pub(super) struct Plan<'a> {
    pub guest: &'a Sections<'a>,
    kernel: &'static Kernel,
    /// Imported functions of the guest, by index: which function stands for each.
    imported: Vec<u32>,
    /// Which of those a call opens up to instead.
    accesses: Vec<Option<Access>>,
    /// How many imports stay.
    kept: Vec<(&'static str, &'static str, u32)>,
    first_kernel_function: u32,
    first_kernel_type: u32,
    first_kernel_global: u32,
    memory: GuestMemory,
    initialize: Option<Initialize>,
}

/// The guest's memory in pages.
struct GuestMemory {
    /// What it declared.
    initial: u64,
    /// What it really has from the start.
    presized: u64,
    limit: u64,
}

/// What has to run first, by the guest's own function indices.
struct Initialize {
    reactor: Option<u32>,
    /// And the number of its results.
    haskell: Option<(u32, usize)>,
}

type Encoded<T> = Result<T, Reencoding<ModuleError>>;

impl<'a> Plan<'a> {
    fn new(guest: &'a Sections<'a>, kernel: &'static Kernel, options: &ModuleOptions) -> Result<Self, ModuleError> {
        let providers: Vec<Provider> = guest
            .imports
            .iter()
            .map(|import| Known::find(import.module, import.name).expect("checked: every import is known").provider)
            .collect();
        let mut kept = Vec::new();
        for (provider, ty) in providers.iter().zip(&guest.function_types) {
            if let Provider::Host { module, name } = *provider {
                kept.push((module, name, *ty));
            }
        }
        let defined = guest.function_types.len() - providers.len();
        let first_kernel_function = fits("functions", kept.len() + defined, kernel.functions() + 1)?;
        let first_kernel_type = fits("types", guest.signatures.len(), kernel.sections.signatures.len() + 1)?;
        let globals = |sections: &Sections<'_>| sections.globals.as_ref().map_or(0, |globals| globals.count() as usize);
        let first_kernel_global = fits("globals", globals(guest), globals(&kernel.sections))?;
        fits("exports", guest.exports.len(), kernel.sections.exports.len() + 1)?;

        let mut next_kept = 0..;
        let imported = providers.iter().map(|provider| match provider {
            Provider::Kernel(name) => first_kernel_function + kernel.index(name),
            Provider::Host { .. } => next_kept.next().expect("as many as were kept, which fit"),
        });
        let imported = imported.collect();
        let accesses = providers.iter().map(|provider| match provider {
            Provider::Kernel(name) => Access::of(name),
            Provider::Host { .. } => None,
        });
        Ok(Self {
            accesses: accesses.collect(),
            imported,
            kept,
            first_kernel_function,
            first_kernel_type,
            first_kernel_global,
            memory: GuestMemory::of(guest, options),
            initialize: Initialize::of(guest),
            guest,
            kernel,
        })
    }

    /// The index of a guest's function in the merged module.
    pub(super) fn function(&self, index: u32) -> u32 {
        let at = usize::try_from(index).expect("usize has at least 32 bits here");
        match self.imported.get(at) {
            Some(mapped) => *mapped,
            None => index - count(self.imported.len()) + count(self.kept.len()),
        }
    }

    /// How a call of this function of the guest is opened up, if it is.
    pub(super) fn access(&self, index: u32) -> Option<Access> {
        self.accesses.get(usize::try_from(index).ok()?).copied().flatten()
    }

    pub(super) fn kernel_function(&self, name: &str) -> u32 {
        self.first_kernel_function + self.kernel.index(name)
    }

    pub(super) fn kernel_global(&self, name: &str) -> u32 {
        self.first_kernel_global + self.kernel.index(name)
    }

    fn initialize_function(&self) -> u32 {
        self.first_kernel_function + count(self.kernel.functions())
    }

    fn merged(&self) -> Encoded<Merged> {
        let mut module = Module::new();
        self.declare(&mut module)?;
        let exports = self.export(&mut module);
        if let Some(start) = self.guest.start {
            module.section(&StartSection { function_index: self.function(start) });
        }
        if let Some(reader) = self.guest.elements.clone() {
            let mut elements = ElementSection::new();
            GuestPart::new(self).parse_element_section(&mut elements, reader)?;
            module.section(&elements);
        }
        if let Some(count) = self.guest.data_count {
            module.section(&DataCountSection { count });
        }
        module.section(&self.code()?);
        if let Some(reader) = self.guest.data.clone() {
            let mut data = DataSection::new();
            GuestPart::new(self).parse_data_section(&mut data, reader)?;
            module.section(&data);
        }
        module.section(&self.names());
        let imports = self.kept.iter().map(|(module, name, _)| ((*module).to_owned(), (*name).to_owned())).collect();
        let initialize = self.initialize.as_ref().map(|_| StartExport { name: INITIALIZE });
        Ok(Merged { wasm: module.finish(), exports, imports, initialize })
    }

    /// Types, imports, functions, tables, memories and globals.
    fn declare(&self, module: &mut Module) -> Encoded<()> {
        let (mut guest, mut kernel) = (GuestPart::new(self), KernelPart(self));
        let mut types = TypeSection::new();
        if let Some(reader) = self.guest.types.clone() {
            guest.parse_type_section(&mut types, reader)?;
        }
        if let Some(reader) = self.kernel.sections.types.clone() {
            kernel.parse_type_section(&mut types, reader)?;
        }
        let start_type = types.len();
        types.ty().function([], []);
        module.section(&types);

        let mut imports = ImportSection::new();
        for (module_name, name, ty) in &self.kept {
            imports.import(module_name, name, EntityType::Function(*ty));
        }
        module.section(&imports);

        let mut functions = FunctionSection::new();
        let defined = self.guest.function_types.iter().skip(self.imported.len());
        defined.for_each(|ty| {
            functions.function(*ty);
        });
        for ty in &self.kernel.sections.function_types {
            functions.function(self.first_kernel_type + ty);
        }
        if self.initialize.is_some() {
            functions.function(start_type);
        }
        module.section(&functions);

        if let Some(reader) = self.guest.tables.clone() {
            let mut tables = TableSection::new();
            guest.parse_table_section(&mut tables, reader)?;
            module.section(&tables);
        }

        let mut memories = MemorySection::new();
        memories.memory(self.memory.ty());
        let kernel_memory = usize::try_from(kernel::KERNEL_MEMORY).expect("a small number");
        memories.memory(kernel.memory_type(self.kernel.sections.memories[kernel_memory])?);
        module.section(&memories);
        module.section(&self.globals()?);
        Ok(())
    }

    fn globals(&self) -> Encoded<GlobalSection> {
        let mut globals = GlobalSection::new();
        if let Some(reader) = self.guest.globals.clone() {
            GuestPart::new(self).parse_global_section(&mut globals, reader)?;
        }
        let pages = |pages: u64| u32::try_from(pages).expect("at most 65,536").cast_signed();
        let (limit_at, pages_at) = (self.kernel.index(kernel::LIMIT), self.kernel.index(kernel::PAGES));
        let reader = self.kernel.sections.globals.clone().expect("the kernel has globals");
        for (index, global) in (0..).zip(reader) {
            let global = global?;
            let ty = KernelPart(self).global_type(global.ty)?;
            let value = match index {
                index if index == limit_at => ConstExpr::i32_const(pages(self.memory.limit)),
                index if index == pages_at => ConstExpr::i32_const(pages(self.memory.initial)),
                _ => KernelPart(self).const_expr(global.init_expr)?,
            };
            globals.global(ty, &value);
        }
        Ok(globals)
    }

    /// Adds the exports and gives the names of those that a caller may call. Only functions stay exported: the host
    /// reaches memory by names of its own.
    fn export(&self, module: &mut Module) -> Vec<String> {
        let mut section = ExportSection::new();
        let mut callable = Vec::new();
        for export in self.guest.exports.iter().filter(|export| export.kind == ExternalKind::Func) {
            section.export(export.name, ExportKind::Func, self.function(export.index));
            let signature = self.guest.signature(export.index);
            if !STARTS.contains(&export.name)
                && signature.is_some_and(|ty| ty.params().is_empty() && matches!(ty.results(), [] | [ValType::I32]))
            {
                callable.push(export.name.to_owned());
            }
        }
        for (name, kind, index) in self.kernel.for_host() {
            let (kind, index) = match kind {
                ExternalKind::Memory => (ExportKind::Memory, index),
                ExternalKind::Global => (ExportKind::Global, self.first_kernel_global + index),
                _ => (ExportKind::Func, self.first_kernel_function + index),
            };
            section.export(name, kind, index);
        }
        if self.initialize.is_some() {
            section.export(INITIALIZE, ExportKind::Func, self.initialize_function());
        }
        module.section(&section);
        callable
    }

    fn code(&self) -> Encoded<CodeSection> {
        let mut code = CodeSection::new();
        if let Some(reader) = self.guest.code.clone() {
            GuestPart::new(self).parse_code_section(&mut code, reader)?;
        }
        let reader = self.kernel.sections.code.clone().expect("the kernel has code");
        KernelPart(self).parse_code_section(&mut code, reader)?;
        if let Some(initialize) = &self.initialize {
            code.function(&initialize.body(self));
        }
        Ok(code)
    }

    /// Names of functions, which traps show. A name section that does not parse harms nobody: it is left out from
    /// where it breaks.
    fn names(&self) -> NameSection {
        let mut by_index = std::collections::BTreeMap::new();
        let subsections = self.guest.names.clone().into_iter().flatten().map_while(Result::ok);
        for subsection in subsections {
            let wasmparser::Name::Function(names) = subsection else { continue };
            let known = names.into_iter().map_while(Result::ok);
            for naming in known.filter(|naming| (naming.index as usize) < self.guest.function_types.len()) {
                by_index.insert(self.function(naming.index), naming.name);
            }
        }
        for (name, kind, index) in self.kernel.for_host() {
            if kind == ExternalKind::Func {
                by_index.insert(self.first_kernel_function + index, name);
            }
        }
        let mut functions = NameMap::new();
        by_index.iter().for_each(|(index, name)| functions.append(*index, name));
        let mut section = NameSection::new();
        section.functions(&functions);
        section
    }
}

impl GuestMemory {
    fn of(guest: &Sections<'_>, options: &ModuleOptions) -> Self {
        let Some(memory) = guest.memories.first() else { return Self { initial: 0, presized: 0, limit: 0 } };
        let allowed = (options.memory_bytes / PAGE_BYTES).min(PAGES_MAX);
        let limit = memory.maximum.map_or(allowed, |maximum| maximum.min(allowed));
        let presized = (memory.initial + PRESIZE_BYTES / PAGE_BYTES).min(limit);
        Self { initial: memory.initial, presized, limit }
    }

    const fn ty(&self) -> MemoryType {
        MemoryType {
            minimum: self.presized,
            maximum: Some(self.limit),
            memory64: false,
            shared: false,
            page_size_log2: None,
        }
    }
}

impl Initialize {
    /// As Extism's hosts do it: a Haskell runtime after its reactor, else constructors, else a reactor.
    fn of(guest: &Sections<'_>) -> Option<Self> {
        let exported = |name: &str| {
            let mut exports = guest.exports.iter().filter(|export| export.kind == ExternalKind::Func);
            let index = exports.find(|export| export.name == name)?.index;
            Some((index, guest.signature(index)?))
        };
        let plain = |name: &str| {
            exported(name)
                .filter(|(_, ty)| ty.params().is_empty() && ty.results().is_empty())
                .map(|(function, _)| function)
        };
        let haskell = exported(HASKELL)
            .filter(|(_, ty)| ty.params() == [ValType::I32, ValType::I32])
            .map(|(function, ty)| (function, ty.results().len()));
        if haskell.is_some() {
            return Some(Self { reactor: plain(REACTOR), haskell });
        }
        // Constructors of another type keep the reactor from running, too: so do Extism's hosts.
        let reactor = match exported(CONSTRUCTORS) {
            Some(_) => plain(CONSTRUCTORS),
            None => plain(REACTOR),
        };
        reactor.map(|reactor| Self { reactor: Some(reactor), haskell: None })
    }

    fn body(&self, plan: &Plan<'_>) -> Function {
        let mut function = Function::new([]);
        let mut code = function.instructions();
        if let Some(reactor) = self.reactor {
            code.call(plan.function(reactor));
        }
        if let Some((haskell, results)) = self.haskell {
            code.i32_const(0).i32_const(0).call(plan.function(haskell));
            for _ in 0..results {
                code.drop();
            }
        }
        code.end();
        function
    }
}

/// The guest's half of the merged module.
pub(super) struct GuestPart<'a> {
    pub plan: &'a Plan<'a>,
    /// The guest's function whose body comes next, and how many calls are opened up already.
    pub next_function: u32,
    pub opened: usize,
}

impl<'a> GuestPart<'a> {
    fn new(plan: &'a Plan<'a>) -> Self {
        Self { plan, next_function: count(plan.imported.len()), opened: 0 }
    }
}

/// The kernel's half. Its memory indices are those of the merged module.
struct KernelPart<'a>(&'a Plan<'a>);

impl Reencode for KernelPart<'_> {
    type Error = ModuleError;

    fn function_index(&mut self, index: u32) -> Encoded<u32> {
        Ok(self.0.first_kernel_function + index)
    }

    fn type_index(&mut self, index: u32) -> Encoded<u32> {
        Ok(self.0.first_kernel_type + index)
    }

    fn global_index(&mut self, index: u32) -> Encoded<u32> {
        Ok(self.0.first_kernel_global + index)
    }
}

/// The first index behind `guest` things, when the kernel's fit there.
fn fits(what: &'static str, guest: usize, kernel: usize) -> Result<u32, ModuleError> {
    if guest + kernel > INDICES_MAX {
        return Err(ModuleError::Full(what));
    }
    Ok(count(guest))
}

fn count(things: usize) -> u32 {
    u32::try_from(things).expect("the validator lets no module have more than a million")
}
