//! `convert`: runs a conversion scenario of a confidential VM and checks every page.

fn main() -> std::process::ExitCode {
    convert::cli::main()
}
