# The protocol is that of _cpu.

from proxadam._cpu import Plan as Plan
from proxadam._cpu import admit as admit
from proxadam._cpu import bind as bind
from proxadam._cpu import launch as launch

def load(device: int) -> None: ...
def chunk_for(numel: int, blocks_at_once: int, longest: int) -> int: ...
