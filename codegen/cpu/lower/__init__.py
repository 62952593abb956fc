"""Op graph -> LLVM IR text, one file per family of ops."""
