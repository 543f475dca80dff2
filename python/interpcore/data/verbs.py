"""Verbs in the third person singular and in the plural, for subject-verb agreement."""

from __future__ import annotations

import csv
from pathlib import Path

from interpcore.errors import Refused

_PAIRS = """
is/are was/were accepts/accept achieves/achieve acts/act adds/add admires/admire admits/admit
advises/advise affects/affect agrees/agree aims/aim allows/allow amuses/amuse annoys/annoy answers/answer
appears/appear applies/apply approaches/approach approves/approve argues/argue arrives/arrive asks/ask
assists/assist attends/attend avoids/avoid bakes/bake balances/balance becomes/become begins/begin
behaves/behave believes/believe belongs/belong bends/bend blames/blame blesses/bless blocks/block
boils/boil borrows/borrow bounces/bounce bows/bow breaks/break breathes/breathe brings/bring builds/build
burns/burn buys/buy calls/call cares/care carries/carry catches/catch causes/cause changes/change
charges/charge chases/chase checks/check cheers/cheer chooses/choose claims/claim claps/clap cleans/clean
clears/clear climbs/climb closes/close collects/collect comes/come compares/compare competes/compete
complains/complain completes/complete contains/contain continues/continue controls/control cooks/cook
copies/copy corrects/correct costs/cost counts/count covers/cover cracks/crack crashes/crash crawls/crawl
creates/create crosses/cross cries/cry cures/cure cuts/cut dances/dance dares/dare deals/deal
decides/decide declines/decline delays/delay delivers/deliver demands/demand depends/depend
describes/describe deserves/deserve designs/design destroys/destroy develops/develop dies/die digs/dig
disagrees/disagree disappears/disappear discovers/discover dislikes/dislike divides/divide does/do
doubts/doubt drags/drag draws/draw dreams/dream dresses/dress drinks/drink drives/drive drops/drop
dries/dry earns/earn eats/eat employs/employ encourages/encourage ends/end enjoys/enjoy enters/enter
escapes/escape examines/examine exists/exist expands/expand expects/expect explains/explain
expresses/express faces/face fades/fade fails/fail falls/fall fears/fear feeds/feed feels/feel
fights/fight fills/fill finds/find finishes/finish fits/fit fixes/fix floats/float flows/flow flies/fly
folds/fold follows/follow forces/force forgets/forget forgives/forgive forms/form founds/found
freezes/freeze frightens/frighten gains/gain gathers/gather gets/get gives/give glows/glow goes/go
grabs/grab grows/grow guesses/guess guides/guide handles/handle hangs/hang happens/happen hates/hate
has/have hears/hear helps/help hides/hide hits/hit holds/hold hopes/hope hunts/hunt hurries/hurry
hurts/hurt imagines/imagine improves/improve includes/include increases/increase invites/invite joins/join
judges/judge jumps/jump keeps/keep kicks/kick kills/kill kisses/kiss knocks/knock knows/know lasts/last
laughs/laugh launches/launch leads/lead leans/lean learns/learn leaves/leave lends/lend lets/let lies/lie
lifts/lift likes/like listens/listen lives/live looks/look loses/lose loves/love makes/make manages/manage
marches/march marks/mark matches/match matters/matter means/mean measures/measure meets/meet melts/melt
minds/mind misses/miss mixes/mix moves/move names/name needs/need notices/notice obeys/obey offers/offer
opens/open orders/order owes/owe owns/own packs/pack paints/paint passes/pass pays/pay performs/perform
picks/pick plans/plan plants/plant plays/play points/point possesses/possess pours/pour praises/praise
prays/pray prefers/prefer prepares/prepare presses/press pretends/pretend prevents/prevent prints/print
produces/produce promises/promise protects/protect proves/prove provides/provide pulls/pull
punishes/punish pushes/push puts/put questions/question races/race rains/rain raises/raise reaches/reach
reads/read realizes/realize receives/receive recognizes/recognize reduces/reduce refuses/refuse
regrets/regret remains/remain remembers/remember reminds/remind removes/remove repairs/repair
repeats/repeat replaces/replace replies/reply reports/report represents/represent rests/rest
returns/return rides/ride rings/ring rises/rise rolls/roll rubs/rub ruins/ruin runs/run rushes/rush
sails/sail saves/save says/say scares/scare screams/scream searches/search sees/see seems/seem sells/sell
sends/send serves/serve sets/set shakes/shake shares/share shines/shine shoots/shoot shouts/shout
shows/show shuts/shut sings/sing sinks/sink sits/sit sleeps/sleep slides/slide slips/slip smells/smell
smiles/smile smokes/smoke sneezes/sneeze solves/solve sorts/sort sounds/sound speaks/speak spells/spell
spends/spend spills/spill spins/spin spreads/spread stands/stand stares/stare starts/start stays/stay
steals/steal sticks/stick stops/stop stretches/stretch strikes/strike studies/study succeeds/succeed
suffers/suffer suggests/suggest supplies/supply supports/support supposes/suppose surprises/surprise
surrounds/surround suspects/suspect swims/swim swings/swing switches/switch takes/take talks/talk
tastes/taste teaches/teach tears/tear tells/tell thanks/thank thinks/think throws/throw ties/tie
touches/touch trades/trade trains/train travels/travel treats/treat trusts/trust tries/try turns/turn
understands/understand uses/use visits/visit waits/wait wakes/wake walks/walk wanders/wander wants/want
warns/warn washes/wash wastes/waste watches/watch waves/wave wears/wear weighs/weigh welcomes/welcome
wins/win wishes/wish wonders/wonder works/work worries/worry writes/write yells/yell
"""
VERBS = tuple((pair.partition("/")[0], pair.partition("/")[2]) for pair in _PAIRS.split())
"""(singular, plural) of common verbs."""


def read_verbs(path: str | Path) -> tuple[tuple[str, str], ...]:
    """Verb pairs from a published list: a CSV file with the columns `sing` and `plur`.

    Raises: Refused for a file without these columns, without verbs, or with a row that lacks one.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns, rows = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{path} is no CSV file: {error}.") from error
    if not {"sing", "plur"} <= set(columns):
        raise Refused(f"A verb list has the columns sing and plur; {path} has {list(columns)}.")
    found = tuple((row["sing"], row["plur"]) for row in rows)
    if not found:
        raise Refused(f"The verb list {path} is empty.")
    lacking = next((number for number, pair in enumerate(found, 1) if not all(pair)), None)
    if lacking is not None:
        raise Refused(f"Row {lacking} of the verb list {path} lacks its singular or its plural.")
    return found
