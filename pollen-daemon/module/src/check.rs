//! Whether a published module may become a seed at all. Everything behind this file may rely on a valid module of
//! accepted features, with functions of known type as its only imports, and at most one memory within the limit.

use wasmparser::{TypeRef, Validator, WasmFeatures};

use super::imports::{Known, sentence};
use super::sections::Sections;
use super::{MODULE_BYTES_MAX, ModuleError, ModuleOptions, PAGE_BYTES, RESERVED};

const MAGIC: &[u8] = b"\0asm";
const MODULE_VERSION: &[u8] = &[1, 0, 0, 0];
const COMPONENT_LAYER: &[u8] = &[1, 0];

/// What guests may use: all that wasmtime has on from the start and that stays within one memory of 32-bit addresses.
/// Garbage-collected types (`externref` too) need a collector that is not built in.
const FEATURES: WasmFeatures = WasmFeatures::WASM2
    .union(WasmFeatures::TAIL_CALL)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::RELAXED_SIMD)
    .difference(WasmFeatures::GC_TYPES);

/// The sections of a module that may become a seed.
pub(super) fn check<'a>(wasm: &'a [u8], options: &ModuleOptions) -> Result<Sections<'a>, ModuleError> {
    if wasm.len() > MODULE_BYTES_MAX {
        return Err(ModuleError::TooLarge { bytes: wasm.len(), max: MODULE_BYTES_MAX });
    }
    let version = wasm.strip_prefix(MAGIC).and_then(|rest| rest.get(..4)).ok_or(ModuleError::NotWasm)?;
    if version != MODULE_VERSION {
        let is_component = version.ends_with(COMPONENT_LAYER);
        return Err(if is_component { ModuleError::Component } else { ModuleError::NotWasm });
    }
    let sections = Sections::of(wasm).map_err(invalid)?;
    // Before validation, so that what a person can change is said in our words.
    if sections.memories.len() > 1 {
        return Err(ModuleError::Memories(sections.memories.len()));
    }
    validate(wasm)?;
    check_imports(&sections)?;
    if let Some(export) = sections.exports.iter().find(|export| export.name.starts_with(RESERVED)) {
        return Err(ModuleError::Reserved(export.name.to_owned()));
    }
    if let Some(memory) = sections.memories.first() {
        let limit_bytes = options.memory_bytes;
        let initial_bytes = memory.initial.saturating_mul(PAGE_BYTES);
        if initial_bytes > limit_bytes {
            return Err(ModuleError::Memory { initial_bytes, limit_bytes });
        }
    }
    Ok(sections)
}

fn invalid(error: wasmparser::Error) -> ModuleError {
    ModuleError::Invalid(error.to_string())
}

fn validate(wasm: &[u8]) -> Result<(), ModuleError> {
    let Err(error) = Validator::new_with_features(FEATURES).validate_all(wasm) else { return Ok(()) };
    // A module that is valid with everything on is sound: it is only not for us.
    match Validator::new_with_features(WasmFeatures::all()).validate_all(wasm) {
        Ok(_) => Err(ModuleError::Feature(error.to_string())),
        Err(_) => Err(invalid(error)),
    }
}

fn check_imports(sections: &Sections<'_>) -> Result<(), ModuleError> {
    for import in &sections.imports {
        let (module, name) = (import.module.to_owned(), import.name.to_owned());
        if module.starts_with(RESERVED) {
            return Err(ModuleError::Reserved(module));
        }
        let kind = match import.ty {
            TypeRef::Func(ty) | TypeRef::FuncExact(ty) => {
                let known = Known::find(&module, &name)
                    .ok_or_else(|| ModuleError::UnknownImport { module: module.clone(), name: name.clone() })?;
                let ty = sections.signature_of_type(ty).expect("validated: an imported function has a function's type");
                if known.has_type(ty) {
                    continue;
                }
                let found = sentence(ty.params(), ty.results());
                return Err(ModuleError::ImportType { module, name, found, expected: known.expected() });
            }
            TypeRef::Memory(_) => "memory",
            TypeRef::Table(_) => "table",
            TypeRef::Global(_) => "global",
            TypeRef::Tag(_) => "tag",
        };
        return Err(ModuleError::ImportKind { kind, module, name });
    }
    Ok(())
}
