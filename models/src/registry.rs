//! Architecture name -> constructor.
