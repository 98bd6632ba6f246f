;; The smallest useful seed: `echo` gives back what it was given. WebAssembly by hand, against Extism's imports alone,
;; and without a memory of its own: the bytes lie in the host's.
;;
;;   wat2wasm echo.wat && pln seed echo.wasm && pln call echo echo hi
(module
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "input_load_u8" (func $input_load_u8 (param i64) (result i32)))
  (import "extism:host/env" "input_load_u64" (func $input_load_u64 (param i64) (result i64)))
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "store_u64" (func $store_u64 (param i64 i64)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))

  (func (export "echo") (result i32)
    (local $length i64)
    (local $output i64)
    (local $done i64)
    (local.set $length (call $input_length))
    (local.set $output (call $alloc (local.get $length)))
    ;; Eight bytes at a time for as long as there are eight.
    (block $few
      (loop $next
        (br_if $few (i64.gt_u (i64.add (local.get $done) (i64.const 8)) (local.get $length)))
        (call $store_u64
          (i64.add (local.get $output) (local.get $done))
          (call $input_load_u64 (local.get $done)))
        (local.set $done (i64.add (local.get $done) (i64.const 8)))
        (br $next)))
    (block $none
      (loop $next
        (br_if $none (i64.ge_u (local.get $done) (local.get $length)))
        (call $store_u8
          (i64.add (local.get $output) (local.get $done))
          (call $input_load_u8 (local.get $done)))
        (local.set $done (i64.add (local.get $done) (i64.const 1)))
        (br $next)))
    (call $output_set (local.get $output) (local.get $length))
    ;; 0 is success.
    (i32.const 0))
)
