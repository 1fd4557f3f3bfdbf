"""Ray core, storage, ledger and registry: what moves things about. No torch, no onnxruntime."""
