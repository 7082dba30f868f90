"""Learning: normaliser, dictionary, statistics, examples and reservoir of a stream. Pure numerics."""

import warnings

# Rows are read-only views of received frames and are only read; torch warns because it could not stop a write.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
# The CSR products we use are stable; the notice is about the rest of torch's sparse API.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
