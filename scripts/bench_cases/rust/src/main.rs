use clap::Parser;
use serde::Serialize;

#[derive(Parser, Serialize)]
struct Arguments {
    #[arg(default_value = "a1b22")]
    text: String,
}

fn main() {
    let arguments = Arguments::parse();
    let numbers = regex::Regex::new("[0-9]+").unwrap();
    let count = numbers.find_iter(&arguments.text).count();
    println!("{} {}", itoa::Buffer::new().format(count), serde_json::to_string(&arguments).unwrap());
}
