;; Everything that a seed must not get away with, one function each, to see what its node does about it: it stops the
;; call, names the limit, and the next call finds nothing of it. `fine` is that next call.
;;
;;   wat2wasm misbehave.wat && pln seed misbehave.wasm --timeout 1s && pln call misbehave spin
(module
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (import "extism:host/env" "error_set" (func $error_set (param i64)))
  (import "extism:host/user" "pollen_request" (func $pollen_request (param i64 i64) (result i64)))

  (memory (export "memory") 1)
  (table $functions 2 2 funcref)
  (elem (i32.const 0) $clean)
  (global $touched (mut i32) (i32.const 0))

  (data (i32.const 0) "fine")
  (data (i32.const 16) "it failed on purpose")
  (data (i32.const 64) "pln://seed/misbehave/circle")
  (data (i32.const 128) "{\"kind\":\"tail_call\",\"uri\":\"pln://seed/misbehave/chase\",\"input\":\"\"}")
  (data (i32.const 256) "{\"kind\":\"tail_call\",\"uri\":7}")
  (data (i32.const 320) "the circle was cut")

  (func $clean)

  ;; Leaves marks wherever a guest can: a global, the memory, the table.
  (func $soil
    (global.set $touched (i32.const 1))
    (memory.fill (i32.const 4096) (i32.const 0xaa) (i32.const 4096))
    (table.set $functions (i32.const 1) (ref.func $clean)))

  ;; A block of the host's memory with `length` bytes from `at`.
  (func $hand (param $at i32) (param $length i32) (result i64)
    (local $block i64)
    (local $done i32)
    (local.set $block (call $alloc (i64.extend_i32_u (local.get $length))))
    (loop $next
      (call $store_u8
        (i64.add (local.get $block) (i64.extend_i32_u (local.get $done)))
        (i32.load8_u (i32.add (local.get $at) (local.get $done))))
      (local.set $done (i32.add (local.get $done) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $done) (local.get $length))))
    (local.get $block))

  (func $answer (param $at i32) (param $length i32)
    (call $output_set (call $hand (local.get $at) (local.get $length)) (i64.extend_i32_u (local.get $length))))

  ;; Answers `fine`, if nothing is left of any other call; else it traps.
  (func (export "fine") (result i32)
    (local $at i32)
    (if (global.get $touched) (then unreachable))
    (if (i32.eqz (ref.is_null (table.get $functions (i32.const 1)))) (then unreachable))
    (if (i32.ne (memory.size) (i32.const 1)) (then unreachable))
    (local.set $at (i32.const 4096))
    (loop $next
      (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then unreachable))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $next (i32.lt_u (local.get $at) (i32.const 65536))))
    (call $answer (i32.const 0) (i32.const 4))
    (i32.const 0))

  ;; Never ends.
  (func (export "spin") (result i32)
    (call $soil)
    (loop $for_ever (br $for_ever))
    unreachable)

  ;; Takes memory, page after page, writes into each, and gives up like an allocator when it gets no more.
  (func (export "allocate") (result i32)
    (local $page i32)
    (call $soil)
    (loop $for_ever
      (local.set $page (memory.grow (i32.const 1)))
      (if (i32.eq (local.get $page) (i32.const -1)) (then unreachable))
      (i32.store (i32.mul (local.get $page) (i32.const 65536)) (i32.const 0xaa))
      (br $for_ever))
    unreachable)

  ;; Takes blocks of the host's memory, one after the other.
  (func (export "hoard") (result i32)
    (local $block i64)
    (call $soil)
    (loop $for_ever
      (local.set $block (call $alloc (i64.const 65536)))
      (if (i64.eqz (local.get $block)) (then unreachable))
      (call $store_u8 (local.get $block) (i32.const 0xaa))
      (br $for_ever))
    unreachable)

  ;; Calls itself, each time deeper.
  (func $deeper (param i32) (result i32)
    (i32.add (call $deeper (i32.add (local.get 0) (i32.const 1))) (local.get 0)))
  (func (export "recurse") (result i32)
    (call $soil)
    (call $deeper (i32.const 0)))

  (func (export "trap") (result i32)
    (call $soil)
    unreachable)

  (func (export "divide") (result i32)
    (call $soil)
    (i32.div_u (i32.const 1) (i32.const 0)))

  ;; Reads where it has no memory.
  (func (export "outside") (result i32)
    (call $soil)
    (i32.load (i32.const 0x7fff0000)))

  ;; Fails the way that a well-behaved seed does: with a text, and a result that is not 0.
  (func (export "fail") (result i32)
    (call $soil)
    (call $error_set (call $hand (i32.const 16) (i32.const 20)))
    (i32.const 1))

  ;; Says that its answer is larger than any may be: 48 MiB.
  (func (export "huge") (result i32)
    (call $soil)
    (call $output_set (call $alloc (i64.const 50331648)) (i64.const 50331648))
    (i32.const 0))

  ;; Says that its answer lies where nothing is.
  (func (export "liar") (result i32)
    (call $soil)
    (call $output_set (i64.const 0x7fffffff0000) (i64.const 64))
    (i32.const 0))

  ;; Asks itself through the mesh, which asks itself through the mesh.
  (func (export "circle") (result i32)
    (call $soil)
    (if (i64.eqz (call $pollen_request (call $hand (i32.const 64) (i32.const 27)) (i64.const 0)))
      (then
        (call $error_set (call $hand (i32.const 320) (i32.const 18)))
        (return (i32.const 1))))
    (i32.const 0))

  ;; Hands its caller on to itself, for ever.
  (func (export "chase") (result i32)
    (call $answer (i32.const 128) (i32.const 66))
    (i32.const 0))

  ;; Answers with the mark of a tail call, and nobody to call.
  (func (export "garble") (result i32)
    (call $answer (i32.const 256) (i32.const 28))
    (i32.const 0))
)
