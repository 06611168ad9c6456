pub mod layout;
pub mod pack;
#[cfg(test)]
mod tests;
