"""What a network computes, as a graph of operators: captured, remembered, and compared with the network itself."""

from acertlab.bounds.graph.comparison import check_chunk as check_chunk, check_operators as check_operators
from acertlab.bounds.graph.memory import graph_of as graph_of
from acertlab.bounds.graph.structure import Graph as Graph
