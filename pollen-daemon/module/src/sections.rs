//! A module's sections, found but not understood: where each lies, and the few facts that merging asks of it. Reads
//! bytes of strangers before they are validated, so it indexes nothing and allocates no more than the bytes justify.

use wasmparser::{
    BinaryReader, CodeSectionReader, CompositeInnerType, DataSectionReader, ElementSectionReader, Export, FuncType,
    FunctionSectionReader, GlobalSectionReader, Import, MemoryType, NameSectionReader, Parser, Payload, Result,
    TableSectionReader, TypeRef, TypeSectionReader,
};

/// What a module consists of, in the order that it has it.
#[derive(Default)]
pub(super) struct Sections<'a> {
    pub types: Option<TypeSectionReader<'a>>,
    /// Each type by its index; what is not a function's is `None`.
    pub signatures: Vec<Option<FuncType>>,
    pub imports: Vec<Import<'a>>,
    pub functions: Option<FunctionSectionReader<'a>>,
    /// The type of each function, imported ones first.
    pub function_types: Vec<u32>,
    pub tables: Option<TableSectionReader<'a>>,
    pub memories: Vec<MemoryType>,
    pub globals: Option<GlobalSectionReader<'a>>,
    pub exports: Vec<Export<'a>>,
    pub start: Option<u32>,
    pub elements: Option<ElementSectionReader<'a>>,
    pub data_count: Option<u32>,
    pub code: Option<CodeSectionReader<'a>>,
    pub data: Option<DataSectionReader<'a>>,
    pub names: Option<NameSectionReader<'a>>,
}

impl<'a> Sections<'a> {
    /// # Errors
    /// Bytes that are no module of sections. The sections' contents are for the validator.
    pub(super) fn of(wasm: &'a [u8]) -> Result<Self> {
        let mut found = Self::default();
        for payload in Parser::new(0).parse_all(wasm) {
            found.take(payload?, wasm)?;
        }
        let imported = found.imports.iter().filter_map(|import| match import.ty {
            TypeRef::Func(index) | TypeRef::FuncExact(index) => Some(index),
            _ => None,
        });
        let mut function_types: Vec<u32> = imported.collect();
        if let Some(functions) = &found.functions {
            for index in functions.clone() {
                function_types.push(index?);
            }
        }
        found.function_types = function_types;
        Ok(found)
    }

    fn take(&mut self, payload: Payload<'a>, wasm: &'a [u8]) -> Result<()> {
        match payload {
            Payload::TypeSection(section) => {
                for group in section.clone() {
                    for ty in group?.into_types() {
                        self.signatures.push(match ty.composite_type.inner {
                            CompositeInnerType::Func(signature) => Some(signature),
                            _ => None,
                        });
                    }
                }
                self.types = Some(section);
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    self.imports.push(import?);
                }
            }
            Payload::FunctionSection(section) => self.functions = Some(section),
            Payload::TableSection(section) => self.tables = Some(section),
            Payload::MemorySection(section) => self.memories = section.into_iter().collect::<Result<_>>()?,
            Payload::GlobalSection(section) => self.globals = Some(section),
            Payload::ExportSection(section) => self.exports = section.into_iter().collect::<Result<_>>()?,
            Payload::StartSection { func, .. } => self.start = Some(func),
            Payload::ElementSection(section) => self.elements = Some(section),
            Payload::DataCountSection { count, .. } => self.data_count = Some(count),
            Payload::CodeSectionStart { range, .. } => {
                let bytes = wasm.get(range.clone()).unwrap_or_default();
                self.code = Some(CodeSectionReader::new(BinaryReader::new(bytes, range.start))?);
            }
            Payload::DataSection(section) => self.data = Some(section),
            Payload::CustomSection(section) if section.name() == "name" => {
                self.names = Some(NameSectionReader::new(BinaryReader::new(section.data(), section.data_offset())));
            }
            _ => {}
        }
        Ok(())
    }

    /// The signature of a function by its index, imported ones first.
    pub(super) fn signature(&self, function: u32) -> Option<&FuncType> {
        let ty = self.function_types.get(usize::try_from(function).ok()?)?;
        self.signature_of_type(*ty)
    }

    pub(super) fn signature_of_type(&self, ty: u32) -> Option<&FuncType> {
        self.signatures.get(usize::try_from(ty).ok()?)?.as_ref()
    }
}
