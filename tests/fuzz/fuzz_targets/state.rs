#![no_main]

use irepair::base::wall::Counting;
use libfuzzer_sys::fuzz_target;

// The wall counts memory as in the program.
#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(|bytes: &[u8]| irepair_fuzz::run_state(bytes));
