;; The memory functions of Extism's `extism:host/env`, merged into every guest.
;;
;; Exports `pln:*` are for the host and stay exports of the merged module; exports `merge:*` are what the merge itself
;; uses; all others are what a guest may import. Memory 0 stands for the guest's own.
;;
;; A block is a header of 16 bytes (tag, capacity, used, next free header) and its data. Headers lie where the guest's
;; own stores reach: a guest can forge them and so spoil its own call, never more, as the host takes every range that
;; comes out of here through bounds checks of its own.
(module
  (memory $guest 0)
  ;; 4 MiB from the start, so that bodies of usual size need no growth, which costs a system call in every instance.
  (memory $kernel (export "pln:kernel") 64 2048)
  (export "pln:memory" (memory $guest))

  ;; Pages of the guest's memory: how many it may have, and how many it thinks it has. Set by the merge.
  (global $limit (export "merge:limit") i32 (i32.const 0))
  (global $pages (export "merge:pages") (mut i32) (i32.const 0))
  ;; Whether the last attempt to have more was refused: then it is what brought the guest down, should it end.
  (global $refused (export "pln:memory-refused") (mut i32) (i32.const 0))

  ;; The end of all blocks: 0 to 16 is never a block, so that offset 0 is nothing.
  (global $position (mut i32) (i32.const 16))
  (global $free_list (mut i32) (i32.const 0))

  ;; The input. The fence is one past the last offset at which 8 bytes can be read.
  (global $input_at (export "merge:input-at") (mut i32) (i32.const 0))
  (global $input_length (export "merge:input-length") (mut i64) (i64.const 0))
  (global $input_fence (export "merge:input-fence") (mut i64) (i64.const 0))

  (global $output_offset (export "pln:output-offset") (mut i64) (i64.const 0))
  (global $output_length (export "pln:output-length") (mut i64) (i64.const 0))
  ;; Whether blocks were refused: the call ends with it, as no guest looks at what it was given.
  (global $blocks_refused (export "pln:blocks-refused") (mut i32) (i32.const 0))
  (global $error_offset (export "pln:error-offset") (mut i64) (i64.const 0))

  ;; What an active block's header begins with. Differs for each place, so that copied bytes are no header.
  (func $tag (param $header i32) (result i32)
    (i32.xor (local.get $header) (i32.const 0x5ee_d0b10)))

  (func $size (result i64)
    (i64.shl (i64.extend_i32_u (memory.size $kernel)) (i64.const 16)))

  (func $in_bounds (param $offset i64) (param $length i64) (result i32)
    (i32.and
      (i64.le_u (local.get $offset) (call $size))
      (i64.le_u (local.get $length) (i64.sub (call $size) (local.get $offset)))))

  (func $is_block (param $offset i64) (result i32)
    (local $header i32)
    (if (i64.lt_u (local.get $offset) (i64.const 32)) (then (return (i32.const 0))))
    (if (i64.ge_u (local.get $offset) (i64.extend_i32_u (global.get $position))) (then (return (i32.const 0))))
    (if (i64.ne (i64.and (local.get $offset) (i64.const 15)) (i64.const 0)) (then (return (i32.const 0))))
    (local.set $header (i32.sub (i32.wrap_i64 (local.get $offset)) (i32.const 16)))
    (i32.eq (i32.load $kernel (local.get $header)) (call $tag (local.get $header))))

  ;; A header of a freed block with room, or 0. Looks at the newest 64 only, so that an allocation takes bounded time.
  (func $reuse (param $need i32) (result i32)
    (local $header i32) (local $before i32) (local $next i32) (local $room i32) (local $tries i32)
    (local.set $header (global.get $free_list))
    (loop $look
      (if (i32.eqz (local.get $header)) (then (return (i32.const 0))))
      (local.set $next (i32.load $kernel offset=12 (local.get $header)))
      (local.set $room (i32.load $kernel offset=4 (local.get $header)))
      (if (i32.ge_u (local.get $room) (local.get $need))
        (then
          ;; Much larger: its end becomes the block, and what is left stays where it is in the list.
          (if (i32.ge_u (i32.sub (local.get $room) (local.get $need)) (i32.const 128))
            (then
              (local.set $room (i32.sub (local.get $room) (i32.add (local.get $need) (i32.const 16))))
              (i32.store $kernel offset=4 (local.get $header) (local.get $room))
              (local.set $header (i32.add (i32.add (local.get $header) (i32.const 16)) (local.get $room)))
              (i32.store $kernel offset=4 (local.get $header) (local.get $need))
              (return (local.get $header))))
          (if (local.get $before)
            (then (i32.store $kernel offset=12 (local.get $before) (local.get $next)))
            (else (global.set $free_list (local.get $next))))
          (return (local.get $header))))
      (local.set $before (local.get $header))
      (local.set $header (local.get $next))
      (br_if $look
        (i32.lt_u (local.tee $tries (i32.add (local.get $tries) (i32.const 1))) (i32.const 64))))
    (i32.const 0))

  ;; Ends the call. A guest that was answered 0 would write there, read it again and go on with what is none of its own.
  (func $refuse
    (global.set $blocks_refused (i32.const 1))
    (unreachable))

  ;; A header behind all blocks.
  (func $bump (param $need i32) (result i32)
    (local $header i32) (local $end i32) (local $missing i32)
    (local.set $header (global.get $position))
    ;; At most 2^27 + 16 + 2^31: no overflow.
    (local.set $end (i32.add (i32.add (local.get $header) (i32.const 16)) (local.get $need)))
    (if (i32.gt_u (local.get $end) (i32.shl (memory.size $kernel) (i32.const 16)))
      (then
        (local.set $missing
          (i32.shr_u
            (i32.add
              (i32.sub (local.get $end) (i32.shl (memory.size $kernel) (i32.const 16)))
              (i32.const 65535))
            (i32.const 16)))
        ;; A mebibyte more than asked for, so that many small blocks cost few system calls.
        (if (i32.eq (memory.grow $kernel (i32.add (local.get $missing) (i32.const 16))) (i32.const -1))
          (then
            (if (i32.eq (memory.grow $kernel (local.get $missing)) (i32.const -1))
              (then (call $refuse)))))))
    (global.set $position (local.get $end))
    (i32.store $kernel offset=4 (local.get $header) (local.get $need))
    (local.get $header))

  (func $alloc (export "alloc") (param $length i64) (result i64)
    (local $need i32) (local $header i32)
    (if (i64.eqz (local.get $length)) (then (return (i64.const 0))))
    ;; More than could ever fit; the bound keeps the sums in `bump` within 32 bits.
    (if (i64.ge_u (local.get $length) (i64.const 0x8000_0000)) (then (call $refuse)))
    (local.set $need
      (i32.and (i32.add (i32.wrap_i64 (local.get $length)) (i32.const 15)) (i32.const -16)))
    (local.set $header (call $reuse (local.get $need)))
    (if (i32.eqz (local.get $header))
      (then
        (local.set $header (call $bump (local.get $need)))))
    (i32.store $kernel (local.get $header) (call $tag (local.get $header)))
    (i32.store $kernel offset=8 (local.get $header) (i32.wrap_i64 (local.get $length)))
    (i64.extend_i32_u (i32.add (local.get $header) (i32.const 16))))

  ;; The host's: nothing is a block too, of no length, so that an empty answer is no failure.
  (func (export "pln:alloc") (param $length i64) (result i64)
    (local $offset i64)
    (if (i64.ne (local.get $length) (i64.const 0))
      (then (return (call $alloc (local.get $length)))))
    (local.set $offset (call $alloc (i64.const 1)))
    (i32.store $kernel (i32.sub (i32.wrap_i64 (local.get $offset)) (i32.const 8)) (i32.const 0))
    (local.get $offset))

  (func $free (export "free") (export "pln:free") (param $offset i64)
    (local $header i32)
    (if (i32.eqz (call $is_block (local.get $offset))) (then (return)))
    (local.set $header (i32.sub (i32.wrap_i64 (local.get $offset)) (i32.const 16)))
    (i32.store $kernel (local.get $header) (i32.const 0))
    (if (i32.eq (i32.wrap_i64 (local.get $offset)) (global.get $input_at))
      (then (call $set_input (local.get $offset) (i64.const 0))))
    (if (i32.eq
          (i32.add (i32.wrap_i64 (local.get $offset)) (i32.load $kernel offset=4 (local.get $header)))
          (global.get $position))
      (then (global.set $position (local.get $header)) (return)))
    (i32.store $kernel offset=12 (local.get $header) (global.get $free_list))
    (global.set $free_list (local.get $header)))

  ;; 0 unless a block begins there and all that it claims lies within the blocks.
  (func $length (export "length") (export "length_unsafe") (export "pln:length") (param $offset i64) (result i64)
    (local $used i64)
    (if (i32.eqz (call $is_block (local.get $offset))) (then (return (i64.const 0))))
    (local.set $used
      (i64.load32_u $kernel offset=8 (i32.sub (i32.wrap_i64 (local.get $offset)) (i32.const 16))))
    (select
      (local.get $used)
      (i64.const 0)
      (i64.le_u (i64.add (local.get $offset) (local.get $used)) (i64.extend_i32_u (global.get $position)))))

  (func $set_input (param $offset i64) (param $length i64)
    (global.set $input_at (i32.wrap_i64 (local.get $offset)))
    (global.set $input_length (local.get $length))
    (global.set $input_fence
      (select
        (i64.sub (local.get $length) (i64.const 7))
        (i64.const 0)
        (i64.gt_u (local.get $length) (i64.const 7)))))

  (func (export "pln:input") (param $length i64) (result i64)
    (local $offset i64)
    (local.set $offset (call $alloc (local.get $length)))
    (if (i64.ne (local.get $offset) (i64.const 0))
      (then (call $set_input (local.get $offset) (local.get $length))))
    (local.get $offset))

  (func (export "input_set") (param $offset i64) (param $length i64)
    (if (call $in_bounds (local.get $offset) (local.get $length))
      (then (call $set_input (local.get $offset) (local.get $length)))))

  (func (export "input_offset") (result i64) (i64.extend_i32_u (global.get $input_at)))
  (func (export "input_length") (result i64) (global.get $input_length))

  ;; The next six are open-coded where a guest calls them; these are for tables, tail calls and references.
  (func (export "input_load_u8") (param $offset i64) (result i32)
    (if (result i32) (i64.lt_u (local.get $offset) (global.get $input_length))
      (then
        (i32.load8_u $kernel (i32.add (global.get $input_at) (i32.wrap_i64 (local.get $offset)))))
      (else (i32.const 0))))
  (func (export "input_load_u64") (param $offset i64) (result i64)
    (if (result i64) (i64.lt_u (local.get $offset) (global.get $input_fence))
      (then (i64.load $kernel (i32.add (global.get $input_at) (i32.wrap_i64 (local.get $offset)))))
      (else (i64.const 0))))
  (func $at (param $offset i64) (result i32)
    (if (i64.ne (i64.shr_u (local.get $offset) (i64.const 32)) (i64.const 0)) (then (unreachable)))
    (i32.wrap_i64 (local.get $offset)))
  (func (export "load_u8") (param $offset i64) (result i32)
    (i32.load8_u $kernel (call $at (local.get $offset))))
  (func (export "load_u64") (param $offset i64) (result i64)
    (i64.load $kernel (call $at (local.get $offset))))
  (func (export "store_u8") (param $offset i64) (param $value i32)
    (i32.store8 $kernel (call $at (local.get $offset)) (local.get $value)))
  (func (export "store_u64") (param $offset i64) (param $value i64)
    (i64.store $kernel (call $at (local.get $offset)) (local.get $value)))

  (func (export "output_set") (param $offset i64) (param $length i64)
    (if (call $in_bounds (local.get $offset) (local.get $length))
      (then
        (global.set $output_offset (local.get $offset))
        (global.set $output_length (local.get $length)))))
  (func (export "output_offset") (result i64) (global.get $output_offset))
  (func (export "output_length") (result i64) (global.get $output_length))

  (func (export "error_set") (param $offset i64)
    (if (call $in_bounds (local.get $offset) (i64.const 0))
      (then (global.set $error_offset (local.get $offset)))))
  (func (export "error_get") (result i64) (global.get $error_offset))

  (func (export "reset")
    (memory.fill $kernel
      (i32.const 16) (i32.const 0) (i32.sub (global.get $position) (i32.const 16)))
    (global.set $position (i32.const 16))
    (global.set $free_list (i32.const 0))
    (call $set_input (i64.const 0) (i64.const 0))
    (global.set $output_offset (i64.const 0))
    (global.set $output_length (i64.const 0))
    (global.set $error_offset (i64.const 0)))

  (func (export "memory_bytes") (result i64) (call $size))

  ;; `memory.grow` and `memory.size` of the guest. Real memory follows only beyond what it has from the start.
  (func (export "merge:grow") (param $more i32) (result i32)
    (local $old i32) (local $new i64) (local $real i32)
    (local.set $old (global.get $pages))
    (local.set $new
      (i64.add (i64.extend_i32_u (local.get $old)) (i64.extend_i32_u (local.get $more))))
    (global.set $refused (i64.gt_u (local.get $new) (i64.extend_i32_u (global.get $limit))))
    (if (global.get $refused) (then (return (i32.const -1))))
    (local.set $real (memory.size $guest))
    (if (i64.gt_u (local.get $new) (i64.extend_i32_u (local.get $real)))
      (then
        (if (i32.eq
              (memory.grow $guest (i32.sub (i32.wrap_i64 (local.get $new)) (local.get $real)))
              (i32.const -1))
          (then (return (i32.const -1))))))
    (global.set $pages (i32.wrap_i64 (local.get $new)))
    (local.get $old))
  (func (export "pln:memory-size") (result i32) (global.get $pages))
)
