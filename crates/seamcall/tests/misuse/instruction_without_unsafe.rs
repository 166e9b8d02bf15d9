//! Nobody executes SEAMCALL without saying that the platform allows it.
use seamcall::Instruction;

fn main() {
    let _ = Instruction::new();
}
