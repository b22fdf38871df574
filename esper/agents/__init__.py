"""Agents: what proposes growth and decay, by rules so far.

tamiyo, emrakul = Tamiyo(), Emrakul()
with session.boundary(loss) as b:
b.submit(*tamiyo.propose(b.observation), *emrakul.propose(b.observation))
"""

from esper.agents.agent import RuleAgent as RuleAgent
from esper.agents.emrakul import Emrakul as Emrakul
from esper.agents.emrakul import HeldOut as HeldOut
from esper.agents.rules import Rule as Rule
from esper.agents.space import Act as Act
from esper.agents.tamiyo import Tamiyo as Tamiyo
from esper.live.observation import Observation as Observation
