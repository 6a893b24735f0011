"""A trained run as a folder that stands alone: `python -m model.exchange.export --run RUN --out FOLDER`.

from_run (what a run knows) -> __main__ -> merging (experts to single weights) -> writing (one tensor at a time) -> the folder
folder (an exported folder, read as untrusted input) -> a network of this program, for predict.py and for `init`
graphs: torch.export and ONNX of an exported folder;  open_clip: two-tower models in that program's layout, and its images towers in ours
modeling_, processing_sparse_generalist: what travels with the folder; they import nothing of this program

FOLDER/  config.json  model.safetensors.index.json  model-00001-of-0000N.safetensors  merges.txt  vocabulary.json
         processor_config.json  README.md  modeling_sparse_generalist.py  processing_sparse_generalist.py  [onnx/]
"""
