"""The language model as an editor sees it: its blocks, its editable weights, its tokens."""
